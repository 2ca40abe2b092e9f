//! The training loop from outside: exact normalisation, resumption, NaN, callbacks, memory.

#[path = "trainer/support.rs"]
mod support;

#[path = "trainer/callbacks.rs"]
mod callbacks;
#[path = "trainer/configs.rs"]
mod configs;
#[path = "trainer/nan.rs"]
mod nan;
#[path = "trainer/resuming.rs"]
mod resuming;
#[path = "trainer/steps.rs"]
mod steps;
