//! LoRA+: B learns faster than A (Hayou, Ghosh, Yu, "LoRA+", 2024).

use entrenar_nn::optim::ParamGroup;
use entrenar_nn::{Parameter, Parameters};

/// The trainable parameters in two groups: every B and every vector (DoRA's magnitudes, biases) with
/// `ratio` times the optimizer's learning rate, the others with the learning rate itself. PEFT groups
/// them so, but for both matrices of an embedding, which have the learning rate itself here and one of
/// their own there. A group without a parameter is left out.
///
/// ```
/// use entrenar_nn::{Init, Linear};
/// use entrenar_nn::optim::AdamW;
/// use entrenar_tune::lora::{LoraConfig, LoraLinear, lora_plus_groups};
/// let init = &mut Init::new(0);
/// let base = Linear::new(6, 4, init)?;
/// let layer = LoraLinear::new(base.into(), &LoraConfig::default().of("layer")?, init)?;
/// let groups = lora_plus_groups(&layer, 16.0);
/// assert_eq!(groups.len(), 2);
/// assert_eq!(groups[1].learning_rate_scale, 16.0);
/// assert_eq!(groups[1].parameters[0].0, "lora_B.weight");
/// let optimizer = AdamW::new(groups, 1e-4)?;
/// # Ok::<(), entrenar_core::Error>(())
/// ```
pub fn lora_plus_groups(model: &(impl Parameters + ?Sized), ratio: f64) -> Vec<ParamGroup> {
    let all = model.trainable_parameters().into_iter();
    let (fast, slow): (Vec<_>, Vec<_>) = all.partition(|(name, p)| learns_faster(name, p));
    [
        ParamGroup::new(slow),
        ParamGroup::new(fast).learning_rate_scale(ratio),
    ]
    .into_iter()
    .filter(|group| !group.parameters.is_empty())
    .collect()
}

/// Whether LoRA+ gives this parameter the greater learning rate.
pub fn learns_faster(name: &str, parameter: &Parameter) -> bool {
    name.contains("lora_B") || parameter.shape().rank() == 1
}
