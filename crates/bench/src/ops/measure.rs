//! The time of one call: the smallest over batches, which is what a quiet machine would show.

use std::time::{Duration, Instant};

use entrenar_base::Result;

use super::Subject;

/// Seconds per call.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Times {
    /// Without a graph.
    pub forward: f64,
    /// Forward and backward; `None` where there is no derivative.
    pub step: Option<f64>,
}

impl Times {
    /// The smaller of each.
    pub fn min(self, other: Times) -> Times {
        Times {
            forward: self.forward.min(other.forward),
            step: self.step.zip(other.step).map(|(a, b)| a.min(b)),
        }
    }
}

/// Times `subject`, `budget` for each of the two.
///
/// # Errors
/// Whatever it returns.
pub fn times(subject: &Subject, budget: Duration) -> Result<Times> {
    Ok(Times {
        forward: smallest(budget, &subject.forward)?,
        step: match &subject.step {
            None => None,
            Some(step) => Some(smallest(budget, step)?),
        },
    })
}

/// The smallest seconds per call over batches of about a millisecond, at least three of them.
fn smallest(budget: Duration, call: &dyn Fn() -> Result<()>) -> Result<f64> {
    const BATCH: f64 = 1e-3;
    call()?;
    let begin = Instant::now();
    call()?;
    let once = begin.elapsed().as_secs_f64().max(1e-8);
    let count = (BATCH / once).clamp(1.0, 1e5) as usize;
    let mut best = f64::INFINITY;
    let end = Instant::now() + budget;
    let mut batches = 0;
    while batches < 3 || Instant::now() < end {
        let begin = Instant::now();
        for _ in 0..count {
            call()?;
        }
        best = best.min(begin.elapsed().as_secs_f64() / count as f64);
        batches += 1;
    }
    Ok(best)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sleeping_takes_as_long_as_it_takes() {
        let nap = || {
            std::thread::sleep(Duration::from_millis(2));
            Ok(())
        };
        let seconds = smallest(Duration::from_millis(1), &nap).unwrap();
        assert!((2e-3..0.2).contains(&seconds), "{seconds}");
    }

    #[test]
    fn the_smaller_times_win() {
        let a = Times {
            forward: 1.0,
            step: Some(4.0),
        };
        let b = Times {
            forward: 2.0,
            step: Some(3.0),
        };
        let both = Times {
            forward: 1.0,
            step: Some(3.0),
        };
        assert_eq!(a.min(b), both);
    }
}
