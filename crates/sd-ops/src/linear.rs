//! Linear layers.

use candle_core::{CpuStorage, DType, Device, Result, Storage, Tensor, bail};
use half::{bf16, f16, slice::HalfFloatSliceExt};

use crate::{
    buffer::unwritten,
    isa::vectorized,
    math::gelu,
    product::{PANEL, Panels, Rows},
    strip::{Strip, strips},
    tasks, values,
};

/// Rows that a task has at least: making a panel of the weights must not outweigh the product.
const ROWS: usize = 192;
/// Rows of a gated layer that are in work at a time: hidden values and gates stay in a core's cache.
const GATED_ROWS: usize = 384;

/// `x weight^T + bias`: `[.., inputs]` by weight `[outputs, inputs]` and bias `[outputs]` to `[.., outputs]`.
///
/// `x` and the bias are f32, the weight f32, f16 or bf16, all on the CPU. The layer computes in f32; a row's result does not
/// depend on the others. No gradient is recorded.
///
/// # Errors
/// The shapes do not fit together, or a tensor is of another dtype or device.
pub fn linear(x: &Tensor, weight: &Tensor, bias: Option<&Tensor>) -> Result<Tensor> {
    run(x, weight, bias, Kind::Plain)
}

/// The two halves of [`linear`]'s result, seen as hidden values and gates, multiplied as `hidden * gelu(gate)`: weight
/// `[2 * outputs, inputs]` and bias `[2 * outputs]` to `[.., outputs]` (Shazeer 2020, eq. 6). GELU is the exact one.
///
/// # Errors
/// As [`linear`], or the number of the weight's rows is odd.
pub fn linear_geglu(x: &Tensor, weight: &Tensor, bias: Option<&Tensor>) -> Result<Tensor> {
    run(x, weight, bias, Kind::Gated)
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Plain,
    Gated,
}

fn run(x: &Tensor, weight: &Tensor, bias: Option<&Tensor>, kind: Kind) -> Result<Tensor> {
    let (weights, inputs) = weight.dims2()?;
    let outputs = match kind {
        Kind::Plain => weights,
        Kind::Gated if weights.is_multiple_of(2) => weights / 2,
        Kind::Gated => bail!("a gated layer of {weights} rows, expected an even number"),
    };
    let weight = weight.contiguous()?;
    let (storage, layout) = weight.storage_and_layout();
    let weight = match (&*storage, layout.contiguous_offsets()) {
        (Storage::Cpu(storage), Some((start, end))) => match storage {
            CpuStorage::F32(values) => Weight::F32(&values[start..end]),
            CpuStorage::F16(values) => Weight::F16(&values[start..end]),
            CpuStorage::BF16(values) => Weight::Bf16(&values[start..end]),
            _ => bail!("a weight of another dtype, expected F32, F16 or BF16"),
        },
        _ => bail!("expected contiguous tensors on the CPU"),
    };
    with_inputs(x, [weights, inputs], outputs, bias, |x, bias, out| {
        let layer = Layer {
            x,
            weight,
            bias,
            inputs,
            outputs,
            kind,
        };
        layer.run(out);
    })
}

/// A tensor `[.., outputs]`, filled by `apply` if `x` and the bias fit a layer of so many weights (rows) and inputs.
pub(crate) fn with_inputs(
    x: &Tensor,
    [weights, inputs]: [usize; 2],
    outputs: usize,
    bias: Option<&Tensor>,
    apply: impl FnOnce(&[f32], &[f32], &mut [f32]),
) -> Result<Tensor> {
    let mut dims = x.dims().to_vec();
    match dims.last_mut() {
        Some(last) if *last == inputs => *last = outputs,
        _ => bail!("linear layer of {inputs} inputs applied to {:?}", x.shape()),
    }
    let bias = match bias {
        Some(bias) if bias.dims() == [weights] => bias.contiguous()?,
        Some(bias) => bail!("bias {:?}, expected [{weights}]", bias.shape()),
        None => Tensor::zeros(weights, DType::F32, &Device::Cpu)?,
    };
    let x = x.contiguous()?;
    let mut out = unwritten(dims.iter().product());
    {
        let [x, bias] = [&x, &bias].map(Tensor::storage_and_layout);
        let (x, bias) = (values(&x.0, x.1)?, values(&bias.0, bias.1)?);
        if !out.is_empty() {
            apply(x, bias, &mut out);
        }
    }
    Tensor::from_vec(out, dims, &Device::Cpu)
}

/// The weights, a row an output.
#[derive(Clone, Copy)]
enum Weight<'a> {
    F32(&'a [f32]),
    F16(&'a [f16]),
    Bf16(&'a [bf16]),
}

impl Weight<'_> {
    /// Some neighbours, in f32.
    fn read(&self, first: usize, out: &mut [f32]) {
        let range = first..first + out.len();
        match self {
            Self::F32(values) => out.copy_from_slice(&values[range]),
            Self::F16(values) => values[range].convert_to_f32_slice(out),
            Self::Bf16(values) => values[range].convert_to_f32_slice(out),
        }
    }
}

struct Layer<'a> {
    x: &'a [f32],
    weight: Weight<'a>,
    bias: &'a [f32],
    inputs: usize,
    outputs: usize,
    kind: Kind,
}

/// [`PANEL`] outputs of some rows.
struct Task<'a> {
    first_row: usize,
    out: Strip<'a>,
}

impl Layer<'_> {
    fn run(&self, out: &mut [f32]) {
        let rows = out.len() / self.outputs;
        let chunks = (4 * rayon::current_num_threads()).div_ceil(self.outputs.div_ceil(PANEL));
        let chunk = rows.div_ceil(chunks).max(ROWS.min(rows));
        let tasks = out
            .chunks_mut(chunk * self.outputs)
            .enumerate()
            .flat_map(|(i, out)| {
                strips(out, self.outputs, PANEL).map(move |out| Task {
                    first_row: i * chunk,
                    out,
                })
            });
        tasks::each(tasks.collect(), |buffers, task| match self.kind {
            Kind::Plain => self.plain(task, buffers),
            Kind::Gated => self.gated(task, buffers),
        });
    }

    /// The rows of `x` from one on.
    fn rows(&self, first: usize) -> Rows<'_> {
        Rows::new(&self.x[first * self.inputs..], self.inputs)
    }

    fn plain(&self, Task { first_row, mut out }: Task, [panel, ..]: &mut [Vec<f32>; 3]) {
        let bias = &self.bias[out.first()..][..out.width()];
        for i in 0..out.rows() {
            out.row(i).copy_from_slice(bias);
        }
        self.pack(out.first(), out.width(), panel);
        out.add_product(self.rows(first_row), Panels::new(panel, self.inputs));
    }

    fn gated(&self, task: Task, [hidden_panel, gate_panel, buffer]: &mut [Vec<f32>; 3]) {
        let Task { first_row, mut out } = task;
        let (first, width) = (out.first(), out.width());
        self.pack(first, width, hidden_panel);
        self.pack(self.outputs + first, width, gate_panel);
        for row in (0..out.rows()).step_by(GATED_ROWS) {
            let rows = GATED_ROWS.min(out.rows() - row);
            buffer.resize(2 * rows * width, 0.);
            let (hidden, gates) = buffer.split_at_mut(rows * width);
            for (part, first, panel) in [
                (&mut *hidden, first, &*hidden_panel),
                (&mut *gates, self.outputs + first, &*gate_panel),
            ] {
                let bias = &self.bias[first..][..width];
                part.chunks_exact_mut(width)
                    .for_each(|row| row.copy_from_slice(bias));
                for mut part in strips(part, width, width) {
                    part.add_product(self.rows(first_row + row), Panels::new(panel, self.inputs));
                }
            }
            vectorized!(gate(hidden, gates));
            for (i, hidden) in hidden.chunks_exact(width).enumerate() {
                out.row(row + i).copy_from_slice(hidden);
            }
        }
    }

    /// `width` rows of the weights from `first` on as the columns of a panel.
    fn pack(&self, first: usize, width: usize, panel: &mut Vec<f32>) {
        panel.resize(self.inputs * PANEL, 0.);
        // Squares that stay in a core's first cache.
        for (i, square) in panel.chunks_mut(PANEL * PANEL).enumerate() {
            let mut line = [0f32; PANEL];
            let line = &mut line[..square.len() / PANEL];
            for column in 0..width {
                let from = (first + column) * self.inputs + i * PANEL;
                self.weight.read(from, line);
                for (row, v) in square.chunks_exact_mut(PANEL).zip(&*line) {
                    row[column] = *v;
                }
            }
        }
    }
}

/// `hidden * gelu(gate)` in place of `hidden`.
#[inline(always)]
fn gate(hidden: &mut [f32], gates: &[f32]) {
    for (hidden, gate) in hidden.iter_mut().zip(gates) {
        *hidden *= gelu(*gate);
    }
}
