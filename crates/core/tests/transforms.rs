//! Functional transforms on known functions.
