"""How a defence trades off: attacks that succeed against requests that are served."""
