//! The interface of all schedulers.

use std::{collections::BTreeMap, fmt::Debug, num::NonZeroUsize};

use candle_core::Tensor;

use crate::{NoiseSource, Plan, Result, SigmaSchedule};

/// A recipe for runs, to be shared between them.
pub trait SchedulerConfig: Debug + Send + Sync {
    /// Short name, as in [`Entry::name`](crate::Entry::name).
    fn name(&self) -> &'static str;

    /// A run of exactly `steps` steps that has not begun.
    ///
    /// # Errors
    /// When this scheduler cannot make that many steps.
    fn build(&self, steps: NonZeroUsize) -> Result<Box<dyn Scheduler>>;
}

/// The state of one run. Build one for each generation.
pub trait Scheduler: Debug + Send {
    /// The levels this run passes through.
    fn plan(&self) -> &Plan;

    /// Moves `sample` from the level of `call` to the next.
    ///
    /// `model_output` is the network's answer to `sample` at that level. Both have the same shape,
    /// the batch first, and any float dtype; results are f32. The first call is free (a run that
    /// changes an image starts at [`Plan::start_at`]), after that calls follow each other. A step
    /// that fails changes nothing.
    ///
    /// # Errors
    /// When calls are out of order, shapes differ, or the solver cannot start at this call.
    fn step(
        &mut self,
        call: usize,
        model_output: &Tensor,
        sample: &Tensor,
        noise: &mut dyn NoiseSource,
    ) -> Result<Step>;

    /// All that a run remembers between calls.
    fn state(&self) -> SchedulerState;

    /// Continues from a state that a run of the same configuration and number of steps had.
    ///
    /// # Errors
    /// When the state has calls or tensors that such a run does not have.
    fn restore(&mut self, state: SchedulerState) -> Result<()>;
}

/// What a step makes, f32, in the shape of the sample.
#[derive(Debug, Clone)]
pub struct Step {
    /// The sample at the next level.
    pub sample: Tensor,
    /// What the network takes for the clean sample at this point, for previews.
    pub denoised: Tensor,
}

/// What a run remembers: its position and the tensors of its solver.
#[derive(Debug, Clone, Default)]
pub struct SchedulerState {
    /// The call of the first step; 0 before it.
    pub start: usize,
    /// The call that follows; equal to `start` before the first step.
    pub next: usize,
    /// The solver's memory, by name. Few, and each shaped like the sample.
    pub tensors: BTreeMap<String, Tensor>,
}

/// Choices of one request that replace those of the model's file.
#[derive(Debug, Clone, Default, PartialEq)]
#[non_exhaustive]
pub struct Overrides {
    /// Share of fresh noise in the steps of schedulers that have such a setting (DDIM, TCD), 0 to
    /// 1. `None` is the scheduler's own.
    pub eta: Option<f64>,
    /// Share of the steps that a model was distilled from, the lowest ones, that LCM and TCD spread
    /// their own over, 0 to 1: their way of image-to-image, beside [`Plan::start_at`]. `None` is
    /// all.
    pub strength: Option<f64>,
    /// Noise added before each step of Euler's method. `None` is none.
    pub churn: Option<Churn>,
    /// The curve of sigmas, for schedulers that think in sigmas. `None` is the file's.
    pub sigmas: Option<SigmaSchedule>,
    /// A trajectory of the caller's own, in place of spacing and sigma schedule: for schedulers
    /// that think in sigmas, and as timesteps also for DDPM, LCM and TCD.
    pub trajectory: Option<Trajectory>,
}

/// The points of a run, noisiest first.
#[derive(Debug, Clone, PartialEq)]
pub enum Trajectory {
    /// The timestep of each step; schedulers that tell their network whole timesteps truncate them.
    Timesteps(Vec<f64>),
    /// The Karras sigma of each step, and the last one's end.
    Sigmas(Vec<f64>),
}

/// Noise that is added before a step, which then goes down further (Karras 2022, algorithm 2). The
/// parameters `s_churn`, `s_tmin`, `s_tmax` and `s_noise` of k-diffusion and diffusers.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Churn {
    /// How much, over the whole run: 0 is none. Each step takes its share, at most a factor of
    /// sqrt(2) in sigma.
    pub amount: f64,
    /// Only at Karras sigmas of at least this.
    pub min: f64,
    /// Only at Karras sigmas of at most this.
    pub max: f64,
    /// Deviation of the noise; 1 keeps the balance.
    pub noise: f64,
}

impl Default for Churn {
    fn default() -> Self {
        Self {
            amount: 0.0,
            min: 0.0,
            max: f64::INFINITY,
            noise: 1.0,
        }
    }
}
