//! SIGINT and SIGTERM: the first asks, the second insists.
//!
//! The first signal sets a flag that the training loop looks at between
//! steps, so that it can save and leave cleanly; the second one ends the
//! process at once with status 130. Process-wide: install once, in a binary.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use entrenar_base::{Error, Result};
use signal_hook::SigId;
use signal_hook::consts::{SIGINT, SIGTERM};

/// The status of a process that a second signal ended: 128 + SIGINT.
const INTERRUPTED: i32 = 130;

/// Listens for signals as long as it lives.
pub struct Signals {
    raised: Arc<AtomicBool>,
    which: Arc<AtomicUsize>,
    registered: Vec<SigId>,
}

impl Signals {
    /// Begins to listen.
    ///
    /// # Errors
    ///
    /// What the system reports.
    pub fn install() -> Result<Self> {
        let mut signals = Self {
            raised: Arc::new(AtomicBool::new(false)),
            which: Arc::new(AtomicUsize::new(0)),
            registered: Vec::new(),
        };
        for signal in [SIGINT, SIGTERM] {
            // The order matters: the exit looks at the flag before the same signal sets it.
            let ids = [
                signal_hook::flag::register_conditional_shutdown(
                    signal,
                    INTERRUPTED,
                    Arc::clone(&signals.raised),
                ),
                signal_hook::flag::register_usize(
                    signal,
                    Arc::clone(&signals.which),
                    signal as usize,
                ),
                signal_hook::flag::register(signal, Arc::clone(&signals.raised)),
            ];
            for id in ids {
                signals.registered.push(id.map_err(|error| {
                    Error::other(format!("cannot listen for signal {signal}: {error}"))
                })?);
            }
        }
        Ok(signals)
    }

    /// Whether a signal asked to stop.
    pub fn stop_requested(&self) -> bool {
        self.raised.load(Ordering::Relaxed)
    }

    /// The name of the signal that asked.
    pub fn name(&self) -> Option<&'static str> {
        match self.which.load(Ordering::Relaxed) as i32 {
            SIGINT => Some("SIGINT"),
            SIGTERM => Some("SIGTERM"),
            _ => None,
        }
    }
}

impl Drop for Signals {
    fn drop(&mut self) {
        for id in self.registered.drain(..) {
            signal_hook::low_level::unregister(id);
        }
    }
}
