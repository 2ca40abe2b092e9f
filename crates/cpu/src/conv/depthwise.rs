//! Convolutions whose groups have one input channel, done directly: no patches, no products of
//! matrices, which have a single row or column there.
//!
//! A channel is copied into a [`Frame`]: its lines with the zeros of the padding around them and
//! room behind, split into phases where outputs are several elements apart. Each output line is
//! then a sum of weighted runs of memory, one per element of the kernel ([`weighted`]), computed
//! whole vectors at a time. The input gradient has the same form: elements `stride` apart meet the
//! same part of the kernel, and each such phase is a sum of runs of the gradient. The weight
//! gradient keeps lanes of sums, one set per element of the kernel ([`lanes`]).
//!
//! A forward element sums the kernel's elements in storage order from zero, then adds the bias:
//! the bits of a product of matrices in the same precision.

use crate::alloc::Scratch;
use crate::cast::{round_bf16, same_mut};
use crate::gemm::{Once, Round, Twice};
use crate::kit::{self, Real};
use crate::simd::{fused, multiversion};
use crate::team::{self, Shared};

use super::plan::Plan;
use super::{PARTIAL_ELEMENTS, PARTIALS};

/// Outputs side by side: a vector of f32 in AVX-512.
const LANES: usize = 16;
/// Room behind each run of a frame: lines shorter than a vector are read as one.
const ROOM: usize = LANES;
/// With more outputs per group, products of matrices read each patch often enough.
const FEW_OUTPUTS: usize = 4;
/// Elements of a frame beyond which padding or strides are out of proportion.
const FRAME_ELEMENTS: usize = 1 << 22;
/// Estimated nanoseconds of a multiply-add, and of an element that is copied.
const STEP_NS: f64 = 0.03;
const COPY_NS: f64 = 0.1;

/// One channel with what lies around it: depth, height, width.
struct Frame {
    size: [usize; 3],
    /// Zeros before.
    front: [usize; 3],
    /// Lines that are kept, per plane and planes.
    kept: [usize; 2],
    /// Elements along a line that are kept are `phases` runs: every `phases`-th element each.
    phases: usize,
    run: usize,
}

impl Frame {
    /// The input, as outputs read it.
    fn of_input(p: &Plan) -> Option<Frame> {
        let reach = |d: usize| {
            Some((
                p.output[d].checked_sub(1)?,
                p.dilation[d] * (p.kernel[d] - 1),
            ))
        };
        let kept = |d| reach(d).map(|(last, window)| last * p.stride[d] + window + 1);
        let (last, window) = reach(2)?;
        Frame {
            size: p.input,
            front: p.low,
            kept: [kept(0)?, kept(1)?],
            phases: p.stride[2],
            run: last + window / p.stride[2] + 1 + ROOM,
        }
        .if_small()
    }

    /// The gradient of the output, as elements of the input read it.
    fn of_gradient(p: &Plan) -> Option<Frame> {
        let front = |d: usize| {
            let window = p.dilation[d] * (p.kernel[d] - 1);
            window.saturating_sub(p.low[d]).div_ceil(p.stride[d])
        };
        let front = [front(0), front(1), front(2)];
        let kept = |d: usize| front[d] + (p.input[d] + p.low[d]) / p.stride[d] + 1;
        Frame {
            size: p.output,
            front,
            kept: [kept(0), kept(1)],
            phases: 1,
            run: kept(2) + ROOM,
        }
        .if_small()
    }

    /// The gradient of the output as it is, lines in whole vectors.
    fn of_lines(p: &Plan) -> Option<Frame> {
        Frame {
            size: p.output,
            front: [0; 3],
            kept: [p.output[0], p.output[1]],
            phases: 1,
            run: p.output[2].next_multiple_of(LANES),
        }
        .if_small()
    }

    fn if_small(self) -> Option<Frame> {
        let elements = [self.kept[0], self.kept[1], self.phases, self.run]
            .into_iter()
            .try_fold(1usize, usize::checked_mul)?;
        (elements <= FRAME_ELEMENTS).then_some(self)
    }

    fn line(&self) -> usize {
        self.phases * self.run
    }

    fn plane(&self) -> usize {
        self.kept[1] * self.line()
    }

    fn len(&self) -> usize {
        self.kept[0] * self.plane()
    }

    /// Copies a channel into a frame that holds zeros or another channel.
    fn fill<T: Real>(&self, channel: &[T], round: bool, to: &mut [T]) {
        let [depth, height, width] = self.size;
        for d in 0..depth.min(self.kept[0].saturating_sub(self.front[0])) {
            for h in 0..height.min(self.kept[1].saturating_sub(self.front[1])) {
                let from = &channel[(d * height + h) * width..][..width];
                let at = (d + self.front[0]) * self.plane() + (h + self.front[1]) * self.line();
                let line = &mut to[at..at + self.line()];
                if self.phases == 1 {
                    let count = width.min(self.run.saturating_sub(self.front[2]));
                    let line = &mut line[self.front[2]..][..count];
                    line.copy_from_slice(&from[..count]);
                } else {
                    spread(from, self.front[2], self.phases, self.run, line);
                }
                if round && let Some(line) = same_mut::<T, f32>(line) {
                    rounded(line);
                }
            }
        }
    }
}

/// Element `w` of a line goes to phase `(w + front) % phases`.
fn spread<T: Real>(from: &[T], front: usize, phases: usize, run: usize, to: &mut [T]) {
    for phase in 0..phases {
        // The first element of the phase, and its place.
        let first = (phase + phases - front % phases) % phases;
        let place = (first + front) / phases;
        if first >= from.len() || place >= run {
            continue;
        }
        let count = (from.len() - first).div_ceil(phases).min(run - place);
        every(
            &from[first..],
            phases,
            &mut to[phase * run + place..][..count],
        );
    }
}

multiversion! {
    /// Every `step`-th value.
    fn every<T: Real>(from: &[T], step: usize, to: &mut [T]) {
        let n = to.len();
        if step == 2 && n > 0 {
            // Whole vectors: the distance is known.
            let from = &from[..2 * n - 1];
            for i in 0..n {
                to[i] = from[2 * i];
            }
        } else {
            for i in 0..n {
                to[i] = from[i * step];
            }
        }
    }
}

multiversion! {
    /// Every value rounded to bf16.
    fn rounded(x: &mut [f32]) {
        for i in 0..x.len() {
            x[i] = f32::from_bits(u32::from(round_bf16(x[i]).to_bits()) << 16);
        }
    }
}

/// The weights, rounded to bf16 if need be.
fn weights<T: Real>(w: &[T], round: bool) -> Vec<T> {
    let mut w = w.to_vec();
    if round && let Some(w) = same_mut::<T, f32>(&mut w) {
        rounded(w);
    }
    w
}

/// Sums of weighted runs: `out[line, c] = Σₜ weight[t] · frame[line + offset[t] + c] + bias`.
struct Runs<'a, T> {
    weights: &'a [T],
    /// Where the runs of line (0, 0) begin.
    offsets: &'a [usize],
    bias: T,
    /// Planes and lines per plane, and their distances in the frame and in the output.
    lines: [usize; 2],
    from: [usize; 2],
    to: [usize; 2],
    /// Outputs per line and their distance.
    columns: usize,
    step: usize,
}

/// The sums of `B` vectors of outputs, which begin at the columns `at`.
///
/// # Safety
/// A vector lies behind each offset from each column on, counted from `from`.
#[inline(always)]
unsafe fn vectors<T: Real, R: Round, const B: usize>(
    runs: &Runs<'_, T>,
    from: *const T,
    at: [usize; B],
) -> [[T; LANES]; B] {
    let mut sums = [[T::ZERO; LANES]; B];
    for t in 0..runs.offsets.len() {
        // SAFETY: the lists are equally long, which `each_line` checks.
        let (offset, weight) = unsafe {
            (
                *runs.offsets.get_unchecked(t),
                *runs.weights.get_unchecked(t),
            )
        };
        for b in 0..B {
            // SAFETY: the caller's promise.
            let x = unsafe { &*from.add(offset + at[b]).cast::<[T; LANES]>() };
            for l in 0..LANES {
                sums[b][l] = R::step(x[l], weight, sums[b][l]);
            }
        }
    }
    for b in 0..B {
        for l in 0..LANES {
            sums[b][l] = runs.bias + sums[b][l];
        }
    }
    sums
}

/// Stores the first `live` outputs of a vector, which are ours, `step` apart.
///
/// # Safety
/// The places are valid and exclusively ours.
#[inline(always)]
unsafe fn store<T: Real>(sums: &[T; LANES], to: *mut T, step: usize, live: usize) {
    // SAFETY: the caller's promise.
    unsafe {
        if step == 1 && live == LANES {
            to.cast::<[T; LANES]>().write(*sums);
        } else if step == 1 {
            to.copy_from_nonoverlapping(sums.as_ptr(), live);
        } else {
            for l in 0..live {
                *to.add(l * step) = sums[l];
            }
        }
    }
}

multiversion! {
    fn each_line<T: Real, R: Round>(runs: &Runs<'_, T>, frame: &[T], out: &mut [T]) {
        let columns = runs.columns;
        if runs.lines[0] * runs.lines[1] * columns == 0 {
            return;
        }
        assert_eq!(runs.weights.len(), runs.offsets.len(), "a weight per offset");
        // What the last element reads and writes.
        let last = |step: &[usize; 2]| (runs.lines[0] - 1) * step[0] + (runs.lines[1] - 1) * step[1];
        let farthest = runs.offsets.iter().max().copied();
        let read = farthest.map_or(0, |far| far + last(&runs.from) + columns.max(LANES));
        let written = last(&runs.to) + (columns - 1) * runs.step + 1;
        assert!(read <= frame.len() && written <= out.len(), "lines inside");
        for d in 0..runs.lines[0] {
            for h in 0..runs.lines[1] {
                let from = frame.as_ptr().wrapping_add(d * runs.from[0] + h * runs.from[1]);
                let to = out.as_mut_ptr().wrapping_add(d * runs.to[0] + h * runs.to[1]);
                // SAFETY: both ranges were checked. The last vector of a line overlaps the one
                // before rather than end beyond it.
                unsafe {
                    if columns < LANES {
                        let [sums] = vectors::<T, R, 1>(runs, from, [0]);
                        store(&sums, to, runs.step, columns);
                        continue;
                    }
                    let mut c = 0;
                    while c < columns {
                        let first = c.min(columns - LANES);
                        let second = (c + LANES).min(columns - LANES);
                        if second > first {
                            let sums = vectors::<T, R, 2>(runs, from, [first, second]);
                            store(&sums[0], to.add(first * runs.step), runs.step, LANES);
                            store(&sums[1], to.add(second * runs.step), runs.step, LANES);
                        } else {
                            let [sums] = vectors::<T, R, 1>(runs, from, [first]);
                            store(&sums, to.add(first * runs.step), runs.step, LANES);
                        }
                        c += 2 * LANES;
                    }
                }
            }
        }
    }
}

fn weighted<T: Real>(runs: &Runs<'_, T>, frame: &[T], out: &mut [T]) {
    if fused() {
        each_line::<T, Once>(runs, frame, out);
    } else {
        each_line::<T, Twice>(runs, frame, out);
    }
}

/// Lanes of sums: `sums[t, l] += Σ g[line, c] · frame[line + offset[t] + c]` over `c % LANES = l`.
struct Lanes<'a> {
    offsets: &'a [usize],
    lines: [usize; 2],
    /// Distances in the frame of the input and in that of the gradient.
    from: [usize; 2],
    gradient: [usize; 2],
    columns: usize,
}

/// The sums of `N` offsets, from number `first` on.
///
/// # Safety
/// Whole vectors lie behind each offset from each line on, in both frames.
#[inline(always)]
unsafe fn chunk<T: Real, R: Round, const N: usize>(
    job: &Lanes<'_>,
    first: usize,
    x: *const T,
    g: *const T,
    sums: &mut [[T; LANES]],
) {
    let mut own = [[T::ZERO; LANES]; N];
    let mut offsets = [0; N];
    own.copy_from_slice(&sums[first..first + N]);
    offsets.copy_from_slice(&job.offsets[first..first + N]);
    for d in 0..job.lines[0] {
        for h in 0..job.lines[1] {
            let x = x.wrapping_add(d * job.from[0] + h * job.from[1]);
            let g = g.wrapping_add(d * job.gradient[0] + h * job.gradient[1]);
            let whole = job.columns / LANES * LANES;
            let mut c = 0;
            while c < whole {
                // SAFETY: the caller's promise.
                let g = unsafe { &*g.add(c).cast::<[T; LANES]>() };
                for t in 0..N {
                    // SAFETY: the caller's promise.
                    let x = unsafe { &*x.add(offsets[t] + c).cast::<[T; LANES]>() };
                    for l in 0..LANES {
                        own[t][l] = R::step(g[l], x[l], own[t][l]);
                    }
                }
                c += LANES;
            }
            let live = job.columns - whole;
            if live > 0 {
                // SAFETY: the caller's promise.
                let g = unsafe { &*g.add(c).cast::<[T; LANES]>() };
                for t in 0..N {
                    // SAFETY: the caller's promise.
                    let x = unsafe { &*x.add(offsets[t] + c).cast::<[T; LANES]>() };
                    for l in 0..LANES {
                        // No zero of the gradient may meet an infinite input.
                        let x = if l < live { x[l] } else { T::ZERO };
                        own[t][l] = R::step(g[l], x, own[t][l]);
                    }
                }
            }
        }
    }
    sums[first..first + N].copy_from_slice(&own);
}

multiversion! {
    fn each_offset<T: Real, R: Round>(
        job: &Lanes<'_>,
        x: &[T],
        g: &[T],
        sums: &mut [[T; LANES]],
    ) {
        if job.lines[0] * job.lines[1] * job.columns == 0 {
            return;
        }
        let taps = job.offsets.len();
        assert_eq!(sums.len(), taps, "sums per offset");
        let last = |step: &[usize; 2]| (job.lines[0] - 1) * step[0] + (job.lines[1] - 1) * step[1];
        let read = job.columns.next_multiple_of(LANES);
        let farthest = job.offsets.iter().max().copied().unwrap_or(0);
        assert!(farthest + last(&job.from) + read <= x.len(), "lines inside");
        assert!(last(&job.gradient) + read <= g.len(), "lines inside");
        let (x, g) = (x.as_ptr(), g.as_ptr());
        let mut t = 0;
        while t < taps {
            // SAFETY: both ranges were checked.
            unsafe {
                if taps - t >= 9 {
                    chunk::<T, R, 9>(job, t, x, g, sums);
                    t += 9;
                } else if taps - t >= 3 {
                    chunk::<T, R, 3>(job, t, x, g, sums);
                    t += 3;
                } else {
                    chunk::<T, R, 1>(job, t, x, g, sums);
                    t += 1;
                }
            }
        }
    }
}

fn lanes<T: Real>(job: &Lanes<'_>, x: &[T], g: &[T], sums: &mut [[T; LANES]]) {
    if fused() {
        each_offset::<T, Once>(job, x, g, sums);
    } else {
        each_offset::<T, Twice>(job, x, g, sums);
    }
}

/// A convolution that is done directly.
pub(super) struct Depthwise<'a> {
    plan: &'a Plan,
    input: Frame,
    gradient: Frame,
    lines: Frame,
    /// Where each element of the kernel meets the frame of the input, for output 0.
    offsets: Vec<usize>,
    /// Whether operands are rounded to bf16.
    round: bool,
}

impl<'a> Depthwise<'a> {
    /// The convolution of a plan, if it is one of these.
    pub fn of(plan: &'a Plan, round: bool) -> Option<Self> {
        if plan.groups == 1 || plan.group_in != 1 || plan.group_out > FEW_OUTPUTS {
            return None;
        }
        // Places of taps are products of strides; absurd ones are left to the other path.
        if plan.stride.iter().any(|&stride| stride > FRAME_ELEMENTS) {
            return None;
        }
        let input = Frame::of_input(plan)?;
        let offsets = taps(plan)
            .map(|[d, h, w]| {
                let w = w * plan.dilation[2];
                let along = w % input.phases * input.run + w / input.phases;
                d * plan.dilation[0] * input.plane() + h * plan.dilation[1] * input.line() + along
            })
            .collect();
        Some(Depthwise {
            plan,
            input,
            gradient: Frame::of_gradient(plan)?,
            lines: Frame::of_lines(plan)?,
            offsets,
            round,
        })
    }

    /// Nanoseconds of one pass over one group.
    fn cost(&self) -> f64 {
        let p = self.plan;
        let steps = p.group_out * p.kernel_volume() * p.positions();
        let copied = p.input_plane() + p.group_out * p.positions();
        steps as f64 * STEP_NS + copied as f64 * COPY_NS
    }

    pub fn forward<T: Real>(&self, x: &[T], w: &[T], bias: Option<&[T]>, y: &mut [T]) {
        let p = self.plan;
        let (plane, positions, volume) = (p.input_plane(), p.positions(), p.kernel_volume());
        let w = weights(w, self.round);
        let y = Shared::new(y);
        team::split(p.batch * p.groups, self.cost(), |pairs| {
            let mut frame = Scratch::<T>::zeroed(self.input.len());
            for pair in pairs {
                let channel = &x[pair * plane..(pair + 1) * plane];
                self.input.fill(channel, self.round, &mut frame);
                for o in 0..p.group_out {
                    let output = pair % p.groups * p.group_out + o;
                    let at = (pair * p.group_out + o) * positions;
                    let runs = Runs {
                        weights: &w[output * volume..(output + 1) * volume],
                        offsets: &self.offsets,
                        bias: bias.map_or(T::ZERO, |b| b[output]),
                        lines: [p.output[0], p.output[1]],
                        from: [
                            p.stride[0] * self.input.plane(),
                            p.stride[1] * self.input.line(),
                        ],
                        to: [p.output[1] * p.output[2], p.output[2]],
                        columns: p.output[2],
                        step: 1,
                    };
                    // SAFETY: pairs are disjoint.
                    weighted(&runs, &frame, unsafe { y.slice(at..at + positions) });
                }
            }
        });
    }

    pub fn input_grad<T: Real>(&self, g: &[T], w: &[T], dx: &mut [T]) {
        let p = self.plan;
        let (plane, positions, volume) = (p.input_plane(), p.positions(), p.kernel_volume());
        let w = weights(w, self.round);
        let phases = self.phases();
        let dx = Shared::new(dx);
        team::split(p.batch * p.groups, self.cost(), |pairs| {
            let size = self.gradient.len();
            let mut frames = Scratch::<T>::zeroed(p.group_out * size);
            let mut own = Vec::new();
            for pair in pairs {
                for (o, frame) in frames.chunks_exact_mut(size).enumerate() {
                    let at = (pair * p.group_out + o) * positions;
                    self.gradient
                        .fill(&g[at..at + positions], self.round, frame);
                }
                let first = pair % p.groups * p.group_out * volume;
                // SAFETY: pairs are disjoint.
                let dx = unsafe { dx.slice(pair * plane..(pair + 1) * plane) };
                for phase in &phases {
                    own.clear();
                    own.extend(phase.taps.iter().map(|&t| w[first + t]));
                    let [_, height, width] = p.input;
                    let runs = Runs {
                        weights: &own,
                        offsets: &phase.offsets,
                        bias: T::ZERO,
                        lines: [phase.count[0], phase.count[1]],
                        from: [self.gradient.plane(), self.gradient.line()],
                        to: [p.stride[0] * height * width, p.stride[1] * width],
                        columns: phase.count[2],
                        step: p.stride[2],
                    };
                    if phase.count.iter().all(|&n| n > 0) {
                        weighted(&runs, &frames, &mut dx[phase.first..]);
                    }
                }
            }
        });
    }

    /// The phases of the input: elements whose places have the same remainders by the strides.
    fn phases(&self) -> Vec<Phase> {
        let p = self.plan;
        let frame = &self.gradient;
        // Strides beyond the input leave phases without elements.
        let strides: [usize; 3] = std::array::from_fn(|d| p.stride[d].min(p.input[d]));
        let places = |n: [usize; 3]| {
            (0..n[0] * n[1] * n[2]).map(move |i| [i / n[2] / n[1], i / n[2] % n[1], i % n[2]])
        };
        places(strides)
            .map(|at| {
                let mut phase = Phase {
                    first: (at[0] * p.input[1] + at[1]) * p.input[2] + at[2],
                    count: std::array::from_fn(|d| (p.input[d] - at[d]).div_ceil(p.stride[d])),
                    taps: vec![],
                    offsets: vec![],
                };
                for o in 0..p.group_out {
                    for (t, tap) in taps(p).enumerate() {
                        // The output that this element of the kernel brings to the first place.
                        let mut output = [0; 3];
                        let meets = (0..3).all(|d| {
                            let (place, stride) = (at[d] + p.low[d], p.stride[d]);
                            let place = place + frame.front[d] * stride;
                            let Some(place) = place.checked_sub(tap[d] * p.dilation[d]) else {
                                return false;
                            };
                            output[d] = place / stride;
                            place.is_multiple_of(stride)
                        });
                        if meets {
                            let [d, h, w] = output;
                            let offset = d * frame.plane() + h * frame.line() + w;
                            phase.taps.push(o * p.kernel_volume() + t);
                            phase.offsets.push(o * frame.len() + offset);
                        }
                    }
                }
                phase
            })
            .collect()
    }

    pub fn weight_grad<T: Real>(&self, g: &[T], x: &[T], dw: &mut [T]) {
        let p = self.plan;
        let (plane, positions, volume) = (p.input_plane(), p.positions(), p.kernel_volume());
        let size = p.groups * p.group_out * volume;
        // Parts of the batch are summed apart, cut by the shape alone.
        let parts = PARTIALS.min(p.batch).min((PARTIAL_ELEMENTS / size).max(1));
        let images = p.batch.div_ceil(parts);
        let parts = p.batch.div_ceil(images);
        let place = p.group_out * volume;
        let mut partial = Scratch::<T>::zeroed(parts * size);
        let job = Lanes {
            offsets: &self.offsets,
            lines: [p.output[0], p.output[1]],
            from: [
                p.stride[0] * self.input.plane(),
                p.stride[1] * self.input.line(),
            ],
            gradient: [self.lines.plane(), self.lines.line()],
            columns: p.output[2],
        };
        let cost = self.cost() * images as f64;
        team::split_mut(&mut partial, parts * p.groups, cost, |items, partial| {
            let mut frame = Scratch::<T>::zeroed(self.input.len());
            let mut line = Scratch::<T>::zeroed(self.lines.len());
            let mut sums = vec![[T::ZERO; LANES]; place];
            for (item, out) in items.zip(partial.chunks_exact_mut(place)) {
                let (part, group) = (item / p.groups, item % p.groups);
                sums.fill([T::ZERO; LANES]);
                for image in part * images..((part + 1) * images).min(p.batch) {
                    let pair = image * p.groups + group;
                    let channel = &x[pair * plane..(pair + 1) * plane];
                    self.input.fill(channel, self.round, &mut frame);
                    for (o, sums) in sums.chunks_exact_mut(volume).enumerate() {
                        let at = (pair * p.group_out + o) * positions;
                        self.lines
                            .fill(&g[at..at + positions], self.round, &mut line);
                        lanes(&job, &frame, &line, sums);
                    }
                }
                totals(&sums, out);
            }
        });
        dw.fill(T::ZERO);
        for part in partial.chunks_exact(size) {
            kit::add_into(dw, part);
        }
    }
}

/// The elements of the kernel, in storage order.
fn taps(p: &Plan) -> impl Iterator<Item = [usize; 3]> {
    let [_, height, width] = p.kernel;
    (0..p.kernel_volume()).map(move |t| [t / width / height, t / width % height, t % width])
}

multiversion! {
    /// Adds the lanes of each set as a balanced tree.
    fn totals<T: Real>(sums: &[[T; LANES]], out: &mut [T]) {
        for t in 0..out.len() {
            let mut lanes = sums[t];
            let mut width = LANES / 2;
            while width > 0 {
                for i in 0..width {
                    lanes[i] += lanes[i + width];
                }
                width /= 2;
            }
            out[t] = lanes[0];
        }
    }
}

/// Elements of the input that the same elements of the kernel meet.
struct Phase {
    /// The first, and how many there are in each direction.
    first: usize,
    count: [usize; 3],
    /// The weights of a group that meet them, and where each finds the gradient for the first.
    taps: Vec<usize>,
    offsets: Vec<usize>,
}
