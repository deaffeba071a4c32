//! Linear layers.

use std::sync::Arc;

use candle_core::{DType, Device, Result, Tensor, bail};
use half::{f16, slice::HalfFloatSliceExt};
use rayon::prelude::*;

use crate::{
    buffer::{part, room, unwritten},
    from_numbers,
    isa::vectorized,
    math::gelu,
    product::{PANEL, Panels, Rows, Start, TILE},
    strip::{Strip, strips},
    tasks, values,
};

/// Most rows of a task: they stay in a core's cache while all weights pass by. Whole tiles of the product.
const ROWS: usize = 192;

/// The weight of a linear layer, laid out for products. Clones share it.
#[derive(Clone)]
pub struct LinearWeight {
    numbers: Numbers,
    /// Outputs and inputs, of a gated layer with the gates among the outputs.
    shape: [usize; 2],
    gated: bool,
}

/// Panels of outputs: `[panels, inputs, PANEL]`. Gates have panels of their own, after those of the hidden values.
#[derive(Clone)]
enum Numbers {
    F32(Arc<Vec<[f32; PANEL]>>),
    F16(Arc<Vec<[f16; PANEL]>>),
}

impl std::fmt::Debug for LinearWeight {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("LinearWeight")
            .field("shape", &self.shape)
            .field("dtype", &self.dtype())
            .field("gated", &self.gated)
            .finish_non_exhaustive()
    }
}

impl LinearWeight {
    /// Outputs are laid out by so many: a layer takes the memory of the next multiple, as do hidden values and gates of a gated one.
    pub const PANEL: usize = PANEL;

    /// Of a layer for [`linear`], `[outputs, inputs]`. f16 stays f16.
    ///
    /// # Errors
    /// The tensor has another number of dimensions, is not f32 or f16, or not on the CPU.
    pub fn new(weight: &Tensor) -> Result<Self> {
        Self::pack(weight, false)
    }

    /// Of a layer for [`linear_geglu`], `[2 * outputs, inputs]`.
    ///
    /// # Errors
    /// As [`new`](Self::new), or the number of rows is odd.
    pub fn gated(weight: &Tensor) -> Result<Self> {
        Self::pack(weight, true)
    }

    fn pack(weight: &Tensor, gated: bool) -> Result<Self> {
        let (rows, inputs) = weight.dims2()?;
        if gated && !rows.is_multiple_of(2) {
            bail!("a gated layer of {rows} rows, expected an even number");
        }
        let shape = [rows, inputs];
        let halves = if gated { 2 } else { 1 };
        let numbers = from_numbers(
            weight,
            |values| Numbers::F32(Arc::new(panels(values, shape, halves))),
            |values| Numbers::F16(Arc::new(panels(values, shape, halves))),
        )?;
        Ok(Self {
            numbers,
            shape,
            gated,
        })
    }

    /// The tensor's shape.
    pub fn shape(&self) -> [usize; 2] {
        self.shape
    }

    /// The tensor's dtype.
    pub fn dtype(&self) -> DType {
        match self.numbers {
            Numbers::F32(_) => DType::F32,
            Numbers::F16(_) => DType::F16,
        }
    }

    /// A panel, in f32, for which `buffer` may be used.
    fn panel<'a>(&'a self, i: usize, buffer: &'a mut Vec<f32>) -> Panels<'a> {
        let inputs = self.shape[1];
        let lines = i * inputs..(i + 1) * inputs;
        match &self.numbers {
            Numbers::F32(panels) => Panels::new(panels[lines].as_flattened(), inputs),
            Numbers::F16(panels) => {
                let panel = panels[lines].as_flattened();
                let buffer = part(buffer, panel.len());
                panel.convert_to_f32_slice(buffer);
                Panels::new(buffer, inputs)
            }
        }
    }
}

/// `values [rows, inputs]`, of which so many parts have panels of their own, with rows as columns.
fn panels<T: Copy + Default + Send + Sync>(
    values: &[T],
    [rows, inputs]: [usize; 2],
    parts: usize,
) -> Vec<[T; PANEL]> {
    let part = rows / parts;
    let count = part.div_ceil(PANEL);
    let line = |i: usize| {
        let (panel, input) = (i / inputs, i % inputs);
        let (first, end) = (panel / count * part, (panel / count + 1) * part);
        let mut line = [T::default(); PANEL];
        let rows = first + panel % count * PANEL..end;
        for (v, row) in line.iter_mut().zip(rows) {
            *v = values[row * inputs + input];
        }
        line
    };
    let count = parts * count * inputs;
    let mut lines = room(count);
    (0..count)
        .into_par_iter()
        .with_min_len(PANEL)
        .map(line)
        .collect_into_vec(&mut lines);
    lines
}

/// `x weight^T + bias`: `[.., inputs]` to `[.., outputs]`, with a bias of `[outputs]`.
///
/// `x` and the bias are f32 on the CPU. The layer computes in f32; a row's result does not depend on the others. No gradient is
/// recorded.
///
/// # Errors
/// The shapes do not fit together, the weight is of a gated layer, or a tensor is of another dtype or device.
pub fn linear(x: &Tensor, weight: &LinearWeight, bias: Option<&Tensor>) -> Result<Tensor> {
    if weight.gated {
        bail!("{weight:?} is of a gated layer");
    }
    run(x, weight, bias, weight.shape[0])
}

/// The two halves of a linear layer's result, seen as hidden values and gates, multiplied as `hidden * gelu(gate)`:
/// `[.., inputs]` to `[.., outputs]` by a [`LinearWeight::gated`], with a bias of `[2 * outputs]` (Shazeer 2020, eq. 6). GELU is
/// the exact one.
///
/// # Errors
/// As [`linear`], but that the weight must be of a gated layer.
pub fn linear_geglu(x: &Tensor, weight: &LinearWeight, bias: Option<&Tensor>) -> Result<Tensor> {
    if !weight.gated {
        bail!("{weight:?} is not of a gated layer");
    }
    run(x, weight, bias, weight.shape[0] / 2)
}

fn run(x: &Tensor, weight: &LinearWeight, bias: Option<&Tensor>, outputs: usize) -> Result<Tensor> {
    with_inputs(x, weight.shape, outputs, bias, |x, bias, out| {
        let layer = Layer {
            x,
            weight,
            bias,
            inputs: weight.shape[1],
            outputs,
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

struct Layer<'a> {
    x: &'a [f32],
    weight: &'a LinearWeight,
    bias: &'a [f32],
    inputs: usize,
    outputs: usize,
}

/// Some outputs, whole panels but for the last ones, of some rows.
struct Task<'a> {
    first_row: usize,
    out: Strip<'a>,
}

/// A panel, and hidden values and gates.
type Buffers = [Vec<f32>; 2];

impl Layer<'_> {
    fn run(&self, out: &mut [f32]) {
        let rows = out.len() / self.outputs;
        let chunk = rows.div_ceil(rows.div_ceil(ROWS)).next_multiple_of(TILE);
        let chunks = rows.div_ceil(chunk);
        let parts = (4 * rayon::current_num_threads()).div_ceil(chunks);
        let part = self.outputs.div_ceil(parts).next_multiple_of(PANEL);
        let tasks = out
            .chunks_mut(chunk * self.outputs)
            .enumerate()
            .flat_map(|(i, out)| {
                strips(out, self.outputs, part).map(move |out| Task {
                    first_row: i * chunk,
                    out,
                })
            });
        tasks::each(tasks.collect(), |buffers: &mut Buffers, task| {
            let x = Rows::new(&self.x[task.first_row * self.inputs..], self.inputs);
            for out in task.out.parts(PANEL) {
                match self.weight.gated {
                    false => self.plain(x, out, buffers),
                    true => self.gated(x, out, buffers),
                }
            }
        });
    }

    /// A panel's outputs.
    fn plain(&self, x: Rows, mut out: Strip, [panel, _]: &mut Buffers) {
        let first = out.first();
        let bias = Start::Columns(&self.bias[first..]);
        out.set_product(bias, x, self.weight.panel(first / PANEL, panel));
    }

    fn gated(&self, x: Rows, mut out: Strip, [panel, sums]: &mut Buffers) {
        let (first, width) = (out.first(), out.width());
        let sums = part(sums, 2 * out.rows() * width);
        let (hidden, gates) = sums.split_at_mut(out.rows() * width);
        let gate_panel = self.outputs.div_ceil(PANEL);
        for (sums, first_bias, first_panel) in [
            (&mut *hidden, first, 0),
            (&mut *gates, self.outputs + first, gate_panel),
        ] {
            for mut sums in strips(sums, width, width) {
                let panel = self.weight.panel(first_panel + first / PANEL, panel);
                sums.set_product(Start::Columns(&self.bias[first_bias..]), x, panel);
            }
        }
        vectorized!(gate(hidden, gates));
        for (i, hidden) in hidden.chunks_exact(width).enumerate() {
            out.row(i).copy_from_slice(hidden);
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
