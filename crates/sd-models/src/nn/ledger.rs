//! What a network holds in memory, without computing: each layer's `replay` follows its `forward`, and takes down what
//! comes alive and what goes.

use candle_core::{DType, Tensor};

/// The bytes of a computation.
///
/// Convention of every `replay`: the caller's tensors are taken down already, the result stays taken down, and whatever
/// else the layer made is gone.
#[derive(Debug, Clone)]
pub(crate) struct Ledger {
    /// Bytes of an activation.
    element: u64,
    gpu: bool,
    live: u64,
    peak: u64,
}

impl Ledger {
    /// For activations of `dtype`.
    pub(crate) fn new(dtype: DType, gpu: bool) -> Self {
        Self {
            element: dtype.size_in_bytes() as u64,
            gpu,
            live: 0,
            peak: 0,
        }
    }

    /// The most bytes alive at a time.
    pub(crate) fn peak(&self) -> u64 {
        self.peak
    }

    /// Whether Candle's kernels for GPUs run in place of ours.
    pub(crate) fn is_gpu(&self) -> bool {
        self.gpu
    }

    /// An activation comes alive.
    pub(crate) fn hold(&mut self, dims: &[usize]) {
        self.hold_bytes(self.bytes(dims));
    }

    /// An activation goes.
    pub(crate) fn release(&mut self, dims: &[usize]) {
        self.release_bytes(self.bytes(dims));
    }

    /// An activation comes and goes.
    pub(crate) fn pass(&mut self, dims: &[usize]) {
        self.pass_bytes(self.bytes(dims));
    }

    pub(super) fn hold_bytes(&mut self, bytes: u64) {
        self.live = self.live.saturating_add(bytes);
        self.peak = self.peak.max(self.live);
    }

    pub(super) fn release_bytes(&mut self, bytes: u64) {
        self.live = self.live.saturating_sub(bytes);
    }

    pub(super) fn pass_bytes(&mut self, bytes: u64) {
        self.peak = self.peak.max(self.live.saturating_add(bytes));
    }

    /// Bytes of an activation.
    pub(super) fn bytes(&self, dims: &[usize]) -> u64 {
        elements(dims).saturating_mul(self.element)
    }

    /// Bytes of the copy of `weight` in the dtype of the activations, none if that is its own.
    pub(super) fn widened(&self, weight: &Tensor) -> u64 {
        if weight.dtype().size_in_bytes() as u64 == self.element {
            return 0;
        }
        self.bytes(weight.dims())
    }
}

/// Elements of a tensor, as many as can be counted.
pub(crate) fn elements(dims: &[usize]) -> u64 {
    dims.iter()
        .fold(1, |n: u64, &dim| n.saturating_mul(dim as u64))
}
