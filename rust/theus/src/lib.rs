//! Managed shared memory for Apache Arrow data.
