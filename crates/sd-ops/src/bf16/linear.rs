//! Linear layers.

use candle_core::{Result, Tensor, bail};

use super::Weight;
use super::line::{Line, Rows, WIDTH};
use super::product::{GROUP, Left, Sums, product};
use crate::{
    isa::vectorized,
    linear::with_inputs,
    math::gelu,
    strip::{Strip, strips_of},
    tasks,
};

/// Lines that a task keeps of its rows of the input: half a megabyte.
const LINES: usize = 1 << 13;
/// Most rows of a task.
const ROWS: usize = 256;

/// `x weight^T + bias`: `[.., inputs]` to `[.., outputs]`, with a bias of `[outputs]`.
///
/// `x` and the bias are f32 on the CPU. A row's result does not depend on the others. No gradient is recorded.
///
/// # Errors
/// The shapes do not fit together, the weight is of another kind of layer, or a tensor is of another dtype or device.
pub fn linear(x: &Tensor, weight: &Weight, bias: Option<&Tensor>) -> Result<Tensor> {
    if weight.is_gated() || weight.taps() != 1 {
        bail!("{weight:?} is not of a linear layer");
    }
    run(x, weight, bias, weight.shape()[0])
}

/// The two halves of a linear layer's result, seen as hidden values and gates, multiplied as `hidden * gelu(gate)`:
/// `[.., inputs]` to `[.., outputs]` by a [`Weight::gated`], with a bias of `[2 * outputs]` (Shazeer 2020, eq. 6). GELU is the
/// exact one.
///
/// # Errors
/// As [`linear`].
pub fn linear_geglu(x: &Tensor, weight: &Weight, bias: Option<&Tensor>) -> Result<Tensor> {
    if !weight.is_gated() {
        bail!("{weight:?} is not of a gated layer");
    }
    run(x, weight, bias, weight.shape()[0] / 2)
}

fn run(x: &Tensor, weight: &Weight, bias: Option<&Tensor>, outputs: usize) -> Result<Tensor> {
    let [weights, inputs, ..] = weight.shape();
    with_inputs(x, [weights, inputs], outputs, bias, |x, bias, out| {
        let layer = Layer {
            x,
            weight,
            bias,
            inputs,
            outputs,
        };
        layer.run(out);
    })
}

struct Layer<'a> {
    x: &'a [f32],
    weight: &'a Weight,
    bias: &'a [f32],
    inputs: usize,
    outputs: usize,
}

/// Some outputs of some rows.
struct Task<'a> {
    first_row: usize,
    out: Strip<'a>,
}

impl Layer<'_> {
    fn run(&self, out: &mut [f32]) {
        let rows = out.len() / self.outputs;
        let steps = self.weight.steps();
        // All tasks' rows but the last ones' fill their groups.
        let most = (LINES / steps.max(1)).clamp(GROUP, ROWS);
        let chunk = rows.div_ceil(rows.div_ceil(most)).next_multiple_of(GROUP);
        let chunks = rows.div_ceil(chunk);
        let parts = (4 * rayon::current_num_threads()).div_ceil(chunks);
        let part = self.outputs.div_ceil(parts).next_multiple_of(WIDTH);
        let tasks = out
            .chunks_mut(chunk * self.outputs)
            .enumerate()
            .flat_map(|(i, out)| {
                strips_of(out, self.outputs, 0..self.outputs, part).map(move |out| Task {
                    first_row: i * chunk,
                    out,
                })
            });
        let steps: Vec<usize> = (0..steps).map(|step| step * chunk).collect();
        tasks::each(tasks.collect(), |buffers, task| {
            self.task(task, chunk, &steps, buffers);
        });
    }

    /// `chunk` is the number of rows that the steps are apart.
    fn task(&self, task: Task, chunk: usize, steps: &[usize], buffers: &mut Buffers) {
        let Task { first_row, mut out } = task;
        let Buffers { lines, sums } = buffers;
        lines.resize(steps.len() * chunk, Line::ZERO);
        let x = Rows {
            values: &self.x[first_row * self.inputs..],
            stride: self.inputs,
            width: self.inputs,
        };
        x.round(out.rows(), lines, chunk);
        let left = Left {
            lines,
            steps,
            groups: out.rows().div_ceil(GROUP),
        };
        let rows = left.groups * GROUP;
        // Of a gated layer a strip of hidden values and one of gates make one of results.
        let kinds = if self.weight.is_gated() { 2 } else { 1 };
        sums.resize(kinds * rows, [0.; WIDTH]);
        let first = out.first();
        for column in (0..out.width()).step_by(WIDTH) {
            let strip = (first + column) / WIDTH * kinds;
            product(left, self.weight.right(strip..strip + kinds), sums);
            let bias = &self.bias[first + column..];
            let (hidden, gates) = sums.split_at(rows);
            match gates {
                [] => vectorized!(write(&mut out, column, hidden, bias)),
                _ => {
                    let gates = (gates, &bias[self.outputs..]);
                    vectorized!(write_gated(&mut out, column, (hidden, bias), gates));
                }
            }
        }
    }
}

#[derive(Default)]
struct Buffers {
    lines: Vec<Line>,
    sums: Vec<Sums>,
}

/// Sums and biases as the columns of `out` from one on, as many as it has.
#[inline(always)]
fn write(out: &mut Strip, column: usize, sums: &[Sums], bias: &[f32]) {
    for (i, sums) in (0..out.rows()).zip(sums) {
        let out = &mut out.row(i)[column..];
        for ((out, sum), bias) in out.iter_mut().zip(sums).zip(bias) {
            *out = sum + bias;
        }
    }
}

#[inline(always)]
fn write_gated(
    out: &mut Strip,
    column: usize,
    (hidden, bias): (&[Sums], &[f32]),
    (gates, gate_bias): (&[Sums], &[f32]),
) {
    write(out, column, hidden, bias);
    for (i, gates) in (0..out.rows()).zip(gates) {
        let out = &mut out.row(i)[column..];
        for ((out, gate), bias) in out.iter_mut().zip(gates).zip(gate_bias) {
            *out *= gelu(gate + bias);
        }
    }
}
