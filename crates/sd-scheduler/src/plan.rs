//! The trajectory of a run, decided before it starts.

use candle_core::Tensor;

use crate::{NoiseLevel, Result, tensor::combine};

/// The noise levels that a run passes through, and how its network calls make up its steps.
#[derive(Debug, Clone, PartialEq)]
pub struct Plan {
    levels: Vec<NoiseLevel>,
    steps_done: Vec<usize>,
    calls_per_step: usize,
    init_noise_std: f64,
    sigma_space: bool,
}

impl Plan {
    /// A plan of one network call a step: `levels` are the level of each call's input, then the end
    /// level.
    ///
    /// # Panics
    /// When `levels` has fewer than two entries.
    pub fn new(levels: Vec<NoiseLevel>) -> Self {
        assert!(
            levels.len() >= 2,
            "a plan needs the level of at least one call, and the end level"
        );
        let steps_done = (0..levels.len()).collect();
        Self {
            levels,
            steps_done,
            calls_per_step: 1,
            init_noise_std: 1.0,
            sigma_space: false,
        }
    }

    /// For solvers whose steps take several calls: `steps_done[c]` is the number of steps complete
    /// after `c` calls, for `c` from 0 to [`calls`](Self::calls), and step `s` starts at call `s *
    /// calls_per_step`.
    ///
    /// # Panics
    /// When `steps_done` has not as many entries as there are levels.
    pub fn with_steps(self, steps_done: Vec<usize>, calls_per_step: usize) -> Self {
        assert_eq!(
            steps_done.len(),
            self.levels.len(),
            "a plan needs the steps done after each number of calls"
        );
        Self {
            steps_done,
            calls_per_step,
            ..self
        }
    }

    /// For solvers that call the network twice a step, but once in the last: at the start, and
    /// where they look ahead.
    pub(crate) fn with_two_calls_a_step(self) -> Self {
        let all = self.calls();
        let steps_done = (0..=all)
            .map(|calls| {
                if calls == all {
                    all.div_ceil(2)
                } else {
                    calls / 2
                }
            })
            .collect();
        self.with_steps(steps_done, 2)
    }

    /// For solvers that the reference runs on `x0 + karras_sigma * noise`, starting there from
    /// noise of standard deviation `init_noise_sigma`.
    pub fn in_sigma_space(self, init_noise_sigma: f64) -> Self {
        let init_noise_std = init_noise_sigma * self.levels[0].alpha;
        Self {
            init_noise_std,
            sigma_space: true,
            ..self
        }
    }

    /// The level of each network call's input, noisiest first, then the end level:
    /// [`calls`](Self::calls) + 1 entries.
    pub fn levels(&self) -> &[NoiseLevel] {
        &self.levels
    }

    /// Network calls of a whole run.
    pub fn calls(&self) -> usize {
        self.levels.len() - 1
    }

    /// Steps of a whole run: as many as were asked for.
    pub fn steps(&self) -> usize {
        self.steps_done[self.calls()]
    }

    /// Steps complete after `calls` network calls.
    pub fn steps_done(&self, calls: usize) -> usize {
        self.steps_done[calls.min(self.calls())]
    }

    /// A run from pure noise starts from standard normal noise times this.
    pub fn init_noise_std(&self) -> f64 {
        self.init_noise_std
    }

    /// The first call of a run that changes an image by `strength`, 0 to 1: the reference's
    /// `get_timesteps`, which takes `floor(steps * strength)` steps. [`calls`](Self::calls) when
    /// that is none.
    pub fn start_at(&self, strength: f64) -> usize {
        let steps = self.steps();
        // The product is rounded to f64 before it is truncated: 50 * 0.58 is 28 there, and must be
        // here.
        let kept = ((steps as f64 * strength.clamp(0.0, 1.0)) as usize).min(steps);
        if kept == 0 {
            self.calls()
        } else {
            (steps - kept) * self.calls_per_step
        }
    }

    /// The first call of a run that goes on with latents that another left at this share of the
    /// way, 0 to 1: the first whose timestep is lower (the reference's `denoising_start`, rounded
    /// up to a whole step). [`calls`](Self::calls) when there is none.
    pub fn resumes_at(&self, share: f64, train_timesteps: usize) -> usize {
        let cutoff = cutoff(share, train_timesteps);
        let calls = &self.levels[..self.calls()];
        let mut left = calls.iter().filter(|call| call.timestep < cutoff).count();
        if self.calls_per_step == 2 && left.is_multiple_of(2) {
            left += 1;
        }
        self.calls().saturating_sub(left)
    }

    /// The call before which a run from `first` on stops, to leave its latents to another at this
    /// share of the way, 0 to 1: the first whose timestep is lower (the reference's
    /// `denoising_end`). `first` itself when that is the one.
    pub fn stops_at(&self, share: f64, train_timesteps: usize, first: usize) -> usize {
        let cutoff = cutoff(share, train_timesteps);
        let calls = self.levels[..self.calls()].iter().skip(first);
        first + calls.filter(|call| call.timestep >= cutoff).count()
    }

    /// The clean samples `x0` brought to the level of `call`'s input with `noise`, both of one
    /// shape: where a run starts that changes an image, and what inpainting puts back between two
    /// calls.
    ///
    /// In the middle of a step of two calls the reference adds as much noise as the step ends with,
    /// whatever level its solver looks at there, and so does this.
    ///
    /// # Errors
    /// When the shapes or devices differ.
    pub fn noised(&self, call: usize, x0: &Tensor, noise: &Tensor) -> Result<Tensor> {
        let call = call.min(self.calls());
        let level = self.levels[call];
        let sigma = match self.levels.get(call + 1) {
            Some(end) if self.calls_per_step == 2 && call % 2 == 1 => {
                level.alpha * end.karras_sigma()
            }
            _ => level.sigma,
        };
        Ok(combine(&[(level.alpha, x0), (sigma, noise)])?)
    }

    /// Latents here times this are the latents that diffusers shows before `call`; `calls()` is the
    /// end of the run.
    pub fn reference_scale(&self, call: usize) -> f64 {
        let level = self.levels[call.min(self.calls())];
        if self.sigma_space {
            level.karras_sigma().hypot(1.0)
        } else {
            1.0
        }
    }
}

/// The training timestep at a share of the way from noise to image. Python rounds halves to even.
fn cutoff(share: f64, train_timesteps: usize) -> f64 {
    let timesteps = train_timesteps as f64;
    (timesteps - share * timesteps).round_ties_even()
}
