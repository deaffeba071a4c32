//! One trajectory of a run: from where it starts down to where it ends.

use sd_config::ModelConfig;
use sd_scheduler::{Plan, Scheduler, SchedulerState};

use crate::{Error, Job, Result, job::wrong, scheduler};

/// A scheduler and the calls of its plan that a run makes. A run has one pass, or two with [`Job::hires`].
#[derive(Debug)]
pub(crate) struct Pass {
    pub(crate) scheduler: Box<dyn Scheduler>,
    /// The plan's call that comes first.
    pub(crate) first: usize,
    /// The plan's call that the pass ends before.
    pub(crate) end: usize,
}

impl Pass {
    /// The pass of a job, and the second one if it has such.
    ///
    /// # Errors
    /// [`Error::Field`](crate::Error::Field): the scheduler cannot make that many steps, or none of them is left to make.
    pub(crate) fn all(model: &ModelConfig, job: &Job) -> Result<Vec<Self>> {
        let first = Self::new(model, job)?;
        let second = job
            .second_pass()
            .map(|job| Self::new(model, &job).map_err(of_second))
            .transpose()?;
        Ok([Some(first), second].into_iter().flatten().collect())
    }

    fn new(model: &ModelConfig, job: &Job) -> Result<Self> {
        let mut scheduler = scheduler::build(model, job)?;
        let (first, end) = span(model, job, scheduler.plan())?;
        let start = SchedulerState {
            start: first,
            next: first,
            ..SchedulerState::default()
        };
        scheduler.restore(start).map_err(|error| match error {
            sd_scheduler::Error::Start { expected, .. } => {
                let expected = format!("one that can start in the middle (this one: {expected})");
                wrong("scheduler", &job.scheduler, expected)
            }
            other => other.into(),
        })?;
        Ok(Self {
            scheduler,
            first,
            end,
        })
    }

    pub(crate) fn plan(&self) -> &Plan {
        self.scheduler.plan()
    }

    /// UNet calls of the pass.
    pub(crate) fn calls(&self) -> usize {
        self.end - self.first
    }

    /// Steps complete before a call of the plan.
    pub(crate) fn steps_done(&self, call: usize) -> usize {
        self.plan().steps_done(call) - self.plan().steps_done(self.first)
    }

    /// Steps of the pass.
    pub(crate) fn steps(&self) -> usize {
        self.steps_done(self.end)
    }
}

/// Names the fields of the second pass.
fn of_second(error: Error) -> Error {
    match error {
        Error::Field {
            field,
            value,
            expected,
        } => Error::Field {
            field: match field {
                "strength" => "hires.strength",
                "num_inference_steps" => "hires.num_inference_steps",
                other => other,
            },
            value,
            expected,
        },
        other => other,
    }
}

/// The calls a job makes, at least one.
fn span(model: &ModelConfig, job: &Job, plan: &Plan) -> Result<(usize, usize)> {
    let train_timesteps = model.scheduler.num_train_timesteps.unwrap_or(1000);
    let steps = format!("a share that leaves one of {} steps", plan.steps());
    let first = match (job.denoising_start, job.strength) {
        (Some(share), _) => plan.resumes_at(share, train_timesteps),
        (None, Some(_)) if scheduler::spreads_steps(model, job) => 0,
        (None, Some(strength)) => plan.start_at(strength),
        (None, None) => 0,
    };
    if first >= plan.calls() {
        return Err(match (job.denoising_start, job.strength) {
            (Some(share), _) => wrong("denoising_start", share, steps),
            (None, strength) => wrong("strength", strength.unwrap_or_default(), steps),
        });
    }
    let Some(share) = job.denoising_end else {
        return Ok((first, plan.calls()));
    };
    let end = plan.stops_at(share, train_timesteps, first);
    if end > first {
        Ok((first, end))
    } else {
        Err(wrong("denoising_end", share, steps))
    }
}
