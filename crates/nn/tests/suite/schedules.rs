//! Schedules against PyTorch's, and their ends.

use std::collections::BTreeMap;

use entrenar_nn::schedule::{
    ConstantLR, CosineAnnealingLR, LinearLR, MultiStepLR, Schedule, StepLR, WarmUp,
};

fn make(name: &str) -> Box<dyn Schedule> {
    let learning_rate = 0.1;
    let cosine = |t_max| CosineAnnealingLR {
        learning_rate,
        t_max,
        eta_min: 0.01,
    };
    match name {
        "constant" => Box::new(ConstantLR { learning_rate }),
        "step" => Box::new(StepLR {
            learning_rate,
            step_size: 3,
            gamma: 0.5,
        }),
        "multi_step" => Box::new(MultiStepLR {
            learning_rate,
            milestones: vec![5, 2, 5],
            gamma: 0.3,
        }),
        "cosine" => Box::new(cosine(11)),
        "linear" => Box::new(LinearLR {
            learning_rate,
            total_steps: 8,
            end: 0.02,
        }),
        "warm_cosine" => Box::new(WarmUp::new(4, cosine(8))),
        other => panic!("no schedule for the golden {other}"),
    }
}

#[test]
fn rates_equal_pytorchs() {
    let goldens: BTreeMap<String, Vec<f64>> =
        serde_json::from_str(include_str!("../data/schedules.json")).unwrap();
    assert_eq!(goldens.len(), 6);
    for (name, want) in goldens {
        let schedule = make(&name);
        for (step, want) in want.iter().enumerate() {
            let got = schedule.lr_at(step as u64);
            assert!(
                (got - want).abs() < 1e-12,
                "{name} step {step}: {got}, expected {want}"
            );
        }
    }
}

#[test]
fn after_the_end_the_last_rate_stays() {
    for name in ["cosine", "linear", "warm_cosine"] {
        let schedule = make(name);
        let end = if name == "linear" { 0.02 } else { 0.01 };
        for step in [12, 13, 1000, u64::MAX] {
            assert_eq!(schedule.lr_at(step), end, "{name} at {step}");
        }
    }
    // Degenerate lengths neither divide by zero nor overflow.
    let nothing = CosineAnnealingLR {
        learning_rate: 1.0,
        t_max: 0,
        eta_min: 0.5,
    };
    assert_eq!(nothing.lr_at(0), 0.5);
    let never = StepLR {
        learning_rate: 1.0,
        step_size: 0,
        gamma: 0.1,
    };
    assert_eq!(never.lr_at(u64::MAX), 1.0);
    let often = StepLR {
        learning_rate: 1.0,
        step_size: 1,
        gamma: 0.5,
    };
    assert_eq!(often.lr_at(u64::MAX), 0.0);
    assert_eq!(WarmUp::new(0, nothing).lr_at(0), 0.5);
}
