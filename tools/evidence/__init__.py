"""Evidence at full size, which is too heavy for the test suite: `make evidence`."""
