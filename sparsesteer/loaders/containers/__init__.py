"""Files that hold named tensors, read without running anything and without more memory than they hold.

``npz`` and ``torch_file`` stand here, both on top of ``zip_file``; safetensors are read by ``sparsesteer.storage``,
which plans use too.
"""
