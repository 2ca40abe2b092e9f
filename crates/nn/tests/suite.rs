//! One integration binary: cells and names, the context, optimizers, layers, and expected values
//! made with PyTorch.

#[path = "suite/adamw8bit.rs"]
mod adamw8bit;
#[path = "suite/context.rs"]
mod context;
#[path = "suite/derive.rs"]
mod derive;
#[path = "suite/golden.rs"]
mod golden;
#[path = "suite/initial.rs"]
mod initial;
#[path = "suite/layers.rs"]
mod layers;
#[path = "suite/losses.rs"]
mod losses;
#[path = "suite/optimizers.rs"]
mod optimizers;
#[path = "suite/parameter.rs"]
mod parameter;
#[path = "suite/schedules.rs"]
mod schedules;
#[path = "suite/state.rs"]
mod state;
