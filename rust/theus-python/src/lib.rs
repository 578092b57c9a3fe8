//! The Python binding of theus.
