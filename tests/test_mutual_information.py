"""What users call: values by the definition and by scikit-learn, every form of codes, errors."""

import numpy as np
import pytest
import torch
from information_cases import KINDS, by_loops, codes, labels
from small_sae import hidden, make_sae

import sparsesteer as ss


def information(x, y, **options):
    return ss.mutual_information(torch.from_numpy(x), y, **options).numpy()


@pytest.mark.parametrize("kind", KINDS)
def test_knn_is_the_definition(kind):
    x, y = codes(kind), labels()
    np.testing.assert_allclose(information(x, y), by_loops(x, y), atol=1e-12)


@pytest.mark.parametrize("n_neighbors", [1, 5])
@pytest.mark.parametrize("n_classes", [2, 4])
def test_neighbours_and_classes(n_neighbors, n_classes):
    x, y = codes("sparse"), labels(n_classes=n_classes)
    found = information(x, y, n_neighbors=n_neighbors, random_state=4)
    np.testing.assert_allclose(found, by_loops(x, y, n_neighbors, 4), atol=1e-12)


@pytest.mark.parametrize("kind", KINDS)
def test_knn_is_scikit_learns_called_per_block(kind):
    selection = pytest.importorskip("sklearn.feature_selection", reason="scikit-learn is not installed")
    x, y = codes(kind).astype(np.float32), labels()
    found = information(x, y, block=8)
    want = [selection.mutual_info_classif(x[:, i : i + 8], y, random_state=0) for i in range(0, 20, 8)]
    np.testing.assert_allclose(found, np.concatenate(want), atol=1e-6)


def test_blocks_have_the_noise_of_their_own_seed_or_of_one_generator():
    x, y = codes("dead"), labels()
    per_block = [by_loops(x[:, i : i + 8], y) for i in range(0, 20, 8)]
    np.testing.assert_allclose(information(x, y, block=8), np.concatenate(per_block), atol=1e-12)
    going_on = information(x, y, block=8, random_state=np.random.RandomState(0))
    np.testing.assert_allclose(going_on[:8], per_block[0], atol=1e-12)
    assert np.abs(going_on[8:16] - per_block[1]).max() > 1e-3
    assert not np.array_equal(information(x, y, random_state=None), information(x, y, random_state=None))


def test_a_class_of_one_sample_is_left_out():
    x, y = codes("sparse"), labels()
    y[7] = 5
    np.testing.assert_allclose(information(x, y), by_loops(x, y), atol=1e-12)


def test_dead_features_are_told_by_noise_alone_and_not_at_all_by_counts():
    x, y = codes("dead"), labels()
    dead = ~x.any(0)
    assert (information(x, y)[dead] > 0).any()
    counted = information(x, y, estimator="histogram")
    assert (counted[dead] == 0).all() and (counted[~dead] > 0).all()


def test_histogram_is_the_plug_in_estimate():
    x, y, n_bins = codes("sparse"), labels(), 5
    want = []
    for column in x.T:
        active = column[column != 0]
        edges = np.linspace(active.min(), active.max(), n_bins + 1)
        bins = np.where(column == 0, 0, np.clip(np.digitize(column, edges), 1, n_bins))
        joint = np.array([[np.mean((bins == b) & (y == c)) for c in (0, 1)] for b in range(n_bins + 1)])
        apart = joint.sum(1, keepdims=True) * joint.sum(0)
        want.append((joint[joint > 0] * np.log(joint[joint > 0] / apart[joint > 0])).sum())
    np.testing.assert_allclose(information(x, y, estimator="histogram", n_bins=n_bins), want, atol=1e-12)


def test_histogram_of_what_tells_everything_is_the_entropy():
    y = labels()
    p = y.mean()
    found = information(y[:, None].astype(float), y, estimator="histogram")
    np.testing.assert_allclose(found, -p * np.log(p) - (1 - p) * np.log(1 - p))


@pytest.mark.parametrize("estimator", ["knn", "histogram"])
def test_every_form_of_codes_gives_the_same(estimator):
    sparse = pytest.importorskip("scipy.sparse")
    x, y = codes("dead"), labels()
    x[5] = 0  # a row without entries
    want = information(x, y, estimator=estimator, block=7)
    dense = torch.from_numpy(x)
    order = dense.argsort(-1, descending=True)
    values = dense.gather(-1, order)
    forms = {
        "array": x,
        "torch CSR": dense.to_sparse_csr(),
        "SciPy CSR": sparse.csr_matrix(x),
        "SparseCodes": ss.SparseCodes(values, torch.where(values > 0, order, -1).int(), (dense > 0).sum(-1).int()),
    }
    for name, form in forms.items():
        found = ss.mutual_information(form, y, estimator=estimator, block=7, n_features=20)
        np.testing.assert_array_equal(found.numpy(), want, err_msg=name)


def test_codes_of_an_sae():
    sae, y = make_sae(whole=True), labels()  # every sum is exact
    h = hidden(len(y)).round()
    dense = ss.mutual_information(sae.encode(h), y)
    assert dense.shape == (sae.d_sae,) and dense.dtype == torch.float64
    sparse = sae.encode_sparse(h)
    assert torch.equal(ss.mutual_information(sparse, y, n_features=sae.d_sae), dense)
    n_seen = int(sparse.indices.max()) + 1
    assert len(ss.mutual_information(sparse, y)) == n_seen


@pytest.mark.parametrize("names", [["b", "a"], [True, False], [-3, 7], [0.0, 2.0]], ids=str)
def test_labels_of_any_name(names):
    x, y = codes("sparse"), labels()
    np.testing.assert_allclose(information(x, np.array(names)[y]), information(x, y), atol=1e-14)


def test_half_precision_and_whole_numbers_are_read_as_they_are():
    x, y = np.round(codes("sparse")), labels()
    want = information(x, y)
    for dtype in (torch.bfloat16, torch.float16, torch.int32):
        found = ss.mutual_information(torch.from_numpy(x).to(dtype), y)
        np.testing.assert_allclose(found.numpy(), want, atol=1e-12)


def test_no_features():
    assert ss.mutual_information(torch.zeros(120, 0), labels()).shape == (0,)


def _with(value):
    x = torch.from_numpy(codes("sparse"))
    x[3, 11] = value
    return x


TWO_TO_A_ROW = torch.tensor([0, 2, 4]), torch.tensor([1, 0, 0, 1]), torch.ones(4)
WRONG = {
    "estimator": (lambda x, y: (x, y, "kraskov"), ValueError, "knn, histogram, got 'kraskov'"),
    "n_neighbors": (lambda x, y: (x, y, "knn", 0), ValueError, "n_neighbors should be a positive whole number, got 0"),
    "block": (lambda x, y: (x, y, "knn", 3, 0, 2.5), ValueError, "block should be a positive whole number, got 2.5"),
    "labels too few": (lambda x, y: (x, y[:-1]), ValueError, r"labels should have shape \[120\], got \[119\]"),
    "labels of parts": (lambda x, y: (x, y + 0.5), TypeError, "whole numbers, bools or text, got float64"),
    "one class": (lambda x, y: (x, 0 * y), ValueError, "two classes or more are needed, all 120 samples have 0"),
    "all labels differ": (lambda x, y: (x, np.arange(120)), ValueError, "every sample has a label of its own"),
    "no samples": (lambda x, y: (x[:0], y[:0]), ValueError, "there are no samples"),
    "NaN": (lambda x, y: (_with(float("nan")), y, "knn", 3, 0, 8), ValueError, "codes of feature 11 have NaN or inf"),
    "infinite": (lambda x, y: (_with(float("inf")), y, "histogram"), ValueError, "codes of feature 11 have NaN or inf"),
    "vector": (lambda x, y: (x[:, 0], y), ValueError, r"a matrix \[n, F\], got \[120\]"),
    "COO": (lambda x, y: (torch.from_numpy(x).to_sparse(), y), TypeError, r"should be CSR \(tensor.to_sparse_csr"),
    "falling CSR": (
        lambda x, y: (torch.sparse_csr_tensor(*TWO_TO_A_ROW, (2, 2), check_invariants=False), y[:2]),
        ValueError,
        "features of a CSR row should rise",
    ),
    "codes of some features": (
        lambda x, y: (make_sae().encode_sparse(hidden(120), 3), y), ValueError, "active features and the codes hold 3"),
}  # fmt: skip


@pytest.mark.parametrize(("given", "error", "message"), WRONG.values(), ids=WRONG)
def test_what_does_not_fit_is_told(given, error, message):
    with pytest.raises(error, match=message):
        ss.mutual_information(*given(codes("sparse"), labels()))


def test_features_outside_of_n_features_are_told():
    with pytest.raises(ValueError, match="features outside of 0 to 4"):
        ss.mutual_information(make_sae().encode_sparse(hidden(120)), labels(), n_features=5)
    with pytest.raises(ValueError, match="the codes have 20 features, n_features is 5"):
        ss.mutual_information(codes("sparse"), labels(), n_features=5)
