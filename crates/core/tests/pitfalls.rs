//! The classic mistakes of automatic differentiation, each with its test.
