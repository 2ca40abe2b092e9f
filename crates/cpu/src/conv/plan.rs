//! The geometry of a convolution, checked and brought to three spatial dimensions.

use entrenar_base::{Error, Result, Shape};

/// How a kernel moves over its input; one entry per spatial dimension.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct ConvGeometry {
    /// Steps between outputs.
    pub stride: Vec<usize>,
    /// Zeros before and after.
    pub padding: Vec<(usize, usize)>,
    /// Steps between the elements of the kernel.
    pub dilation: Vec<usize>,
    /// Groups of channels that do not see each other.
    pub groups: usize,
}

impl ConvGeometry {
    /// Stride 1, no padding, no dilation, one group, over `dims` spatial dimensions.
    pub fn plain(dims: usize) -> Self {
        ConvGeometry {
            stride: vec![1; dims],
            padding: vec![(0, 0); dims],
            dilation: vec![1; dims],
            groups: 1,
        }
    }
}

/// Sizes of a convolution with missing spatial dimensions put in front as size 1.
pub(super) struct Plan {
    pub batch: usize,
    pub groups: usize,
    /// Input and output channels per group.
    pub group_in: usize,
    pub group_out: usize,
    pub input: [usize; 3],
    pub kernel: [usize; 3],
    pub output: [usize; 3],
    pub stride: [usize; 3],
    pub low: [usize; 3],
    pub dilation: [usize; 3],
    high: [usize; 3],
    dims: usize,
}

/// Output positions of a window of `kernel` elements, `dilation` apart, over a padded input.
/// `None` when the window does not fit or a number overflows.
pub(super) fn output_size(
    input: usize,
    (low, high): (usize, usize),
    kernel: usize,
    dilation: usize,
    stride: usize,
) -> Option<usize> {
    let window = dilation
        .checked_mul(kernel.checked_sub(1)?)?
        .checked_add(1)?;
    let padded = input.checked_add(low)?.checked_add(high)?;
    // Offsets are computed in isize further on.
    isize::try_from(padded).ok()?;
    Some(padded.checked_sub(window)? / stride + 1)
}

impl Plan {
    #[track_caller]
    pub(super) fn new(op: &str, x: &[usize], w: &[usize], g: &ConvGeometry) -> Result<Plan> {
        let (x_shape, w_shape) = (Shape::from(x), Shape::from(w));
        let dims = x.len().wrapping_sub(2);
        if !(1..=3).contains(&dims) || w.len() != x.len() {
            return Err(Error::shape(
                op,
                "an input [N, C, *] and a weight [O, C / groups, *] with 1 to 3 spatial dimensions",
                format!("{x_shape} and {w_shape}"),
            ));
        }
        let lengths = [g.stride.len(), g.padding.len(), g.dilation.len()];
        if lengths != [dims; 3] || g.stride.contains(&0) || g.dilation.contains(&0) || g.groups == 0
        {
            return Err(Error::argument(
                op,
                format!(
                    "{dims} strides and dilations of at least 1, {dims} paddings, and groups >= 1"
                ),
                format!("{g:?}"),
            ));
        }
        if x[1] != w[1] * g.groups || !w[0].is_multiple_of(g.groups) {
            return Err(Error::shape(
                op,
                format!(
                    "a weight [O, C / groups, *] with O a multiple of groups = {}",
                    g.groups
                ),
                format!("weight {w_shape} for input {x_shape}"),
            ));
        }
        let mut plan = Plan {
            batch: x[0],
            groups: g.groups,
            group_in: w[1],
            group_out: w[0] / g.groups,
            input: [1; 3],
            kernel: [1; 3],
            output: [1; 3],
            stride: [1; 3],
            low: [0; 3],
            dilation: [1; 3],
            high: [0; 3],
            dims,
        };
        for d in 0..dims {
            let to = 3 - dims + d;
            plan.input[to] = x[2 + d];
            plan.kernel[to] = w[2 + d];
            plan.stride[to] = g.stride[d];
            plan.dilation[to] = g.dilation[d];
            (plan.low[to], plan.high[to]) = g.padding[d];
            plan.output[to] =
                output_size(x[2 + d], g.padding[d], w[2 + d], g.dilation[d], g.stride[d])
                    .ok_or_else(|| {
                        Error::shape(
                            op,
                            "a kernel of at least 1 that fits inside the padded input",
                            format!("kernel {w_shape} over input {x_shape} with {g:?}"),
                        )
                    })?;
        }
        plan.output_shape().checked_numel()?;
        Ok(plan)
    }

    /// `[N, O, *]`
    pub(super) fn output_shape(&self) -> Shape {
        [self.batch, self.groups * self.group_out]
            .into_iter()
            .chain(self.output[3 - self.dims..].iter().copied())
            .collect()
    }

    /// Output positions per channel.
    pub(super) fn positions(&self) -> usize {
        self.output.iter().product()
    }

    /// Lines (runs along the last dimension) per output channel.
    pub(super) fn lines(&self) -> usize {
        self.output[0] * self.output[1]
    }

    pub(super) fn kernel_volume(&self) -> usize {
        self.kernel.iter().product()
    }

    /// Elements of one input channel.
    pub(super) fn input_plane(&self) -> usize {
        self.input.iter().product()
    }

    /// Input elements of one image and group.
    pub(super) fn group_input(&self) -> usize {
        self.group_in * self.input_plane()
    }

    /// True when a patch is one input element and output positions are input positions.
    pub(super) fn is_direct(&self) -> bool {
        self.kernel == [1; 3] && self.stride == [1; 3] && self.low == [0; 3] && self.high == [0; 3]
    }
}
