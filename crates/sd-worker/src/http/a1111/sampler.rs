//! Samplers and schedule types by the web UI's names.

use sd_scheduler::{Entry, SigmaSchedule, SigmaSupport};
use serde_json::{Map, Value, json};

use crate::http::{ApiError, Result, field::shown};

/// The schedule type that the web UI's `Automatic` means for a sampler, by its table of samplers; the model's own
/// otherwise.
fn automatic(entry: &Entry) -> SigmaSchedule {
    match entry.label {
        "DPM++ 2M" | "DPM++ SDE" | "DPM++ 2S a" | "DPM2" | "DPM2 a" => SigmaSchedule::Karras,
        "DPM++ 2M SDE" | "DPM++ 3M SDE" => SigmaSchedule::Exponential,
        _ => SigmaSchedule::Default,
    }
}

/// The worker's name of `sampler_name` with `scheduler`. The sampler may name its schedule itself, as in old requests:
/// `DPM++ 2M Karras`. `None` for neither: the model's own.
///
/// # Errors
/// Names the field that is not known, or the schedule that the sampler cannot follow.
pub(super) fn scheduler(sampler: Option<&str>, schedule: Option<&str>) -> Result<Option<String>> {
    let schedule =
        schedule.filter(|name| !name.is_empty() && !name.eq_ignore_ascii_case("automatic"));
    let Some(sampler) = sampler.filter(|name| !name.is_empty()) else {
        return match schedule {
            None => Ok(None),
            Some(_) => Err(ApiError::unsupported(
                "scheduler",
                "scheduler: needs a sampler_name beside it",
            )),
        };
    };
    let entry = sd_scheduler::entry(sampler).map_err(|_| {
        let known: Vec<_> = sd_scheduler::ALL.iter().map(|entry| entry.label).collect();
        ApiError::invalid(
            "sampler_name",
            format!(
                "sampler_name: got {}, expected one of {}",
                shown(sampler),
                known.join(", ")
            ),
        )
    })?;
    let Some(schedule) = schedule else {
        let canonical = sd_scheduler::canonical_name(sampler).unwrap_or_else(|_| entry.name.into());
        return Ok(Some(if canonical == entry.name {
            joined(entry, automatic(entry))
        } else {
            canonical
        }));
    };
    let schedule: SigmaSchedule = schedule.parse().map_err(|_| {
        let known: Vec<_> = SigmaSchedule::ALL
            .iter()
            .map(|schedule| schedule.label())
            .collect();
        ApiError::invalid(
            "scheduler",
            format!(
                "scheduler: got {}, expected one of {}",
                shown(schedule),
                known.join(", ")
            ),
        )
    })?;
    let follows = matches!(entry.sigmas, SigmaSupport::File | SigmaSupport::Override);
    if follows || schedule == SigmaSchedule::Default {
        Ok(Some(joined(entry, schedule)))
    } else {
        Err(ApiError::unsupported(
            "scheduler",
            format!(
                "scheduler: {} has its own schedule, expected Automatic",
                entry.label
            ),
        ))
    }
}

fn joined(entry: &Entry, schedule: SigmaSchedule) -> String {
    match schedule {
        SigmaSchedule::Default => entry.name.to_owned(),
        schedule => format!("{}_{schedule}", entry.name),
    }
}

/// Sampler and schedule type of a job, as the web UI shows them apart: (`DPM++ 2M`, `Karras`).
pub(super) fn labels(scheduler: &str) -> (String, &'static str) {
    let whole = sd_scheduler::label(scheduler).unwrap_or_else(|_| scheduler.to_owned());
    let Ok(entry) = sd_scheduler::entry(scheduler) else {
        return (whole, SigmaSchedule::Default.label());
    };
    let schedule = SigmaSchedule::ALL
        .into_iter()
        .find(|schedule| whole == format!("{} {}", entry.label, schedule.label()));
    (entry.label.to_owned(), schedule.unwrap_or_default().label())
}

/// `GET /sdapi/v1/samplers`.
pub(super) fn samplers() -> Value {
    sd_scheduler::ALL
        .iter()
        .map(|entry| {
            let aliases: Vec<_> = [entry.name].iter().chain(entry.aliases).copied().collect();
            // Values are text there, whatever they mean.
            let mut options = Map::new();
            if automatic(entry) != SigmaSchedule::Default {
                options.insert("scheduler".into(), automatic(entry).name().into());
            }
            if entry.calls_per_step > 1 {
                options.insert("second_order".into(), "True".into());
            }
            json!({"name": entry.label, "aliases": aliases, "options": options})
        })
        .collect()
}

/// `GET /sdapi/v1/schedulers`.
pub(super) fn schedulers() -> Value {
    SigmaSchedule::ALL
        .iter()
        .map(|schedule| {
            let default = *schedule == SigmaSchedule::Default;
            json!({
                "name": if default { "automatic" } else { schedule.name() },
                "label": schedule.label(),
                "aliases": null,
                "default_rho": if *schedule == SigmaSchedule::Karras { 7.0 } else { -1.0 },
                "need_inner_model": false,
            })
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn named(sampler: &str, schedule: Option<&str>) -> Option<String> {
        scheduler(Some(sampler), schedule).unwrap()
    }

    #[test]
    fn names_of_the_web_ui_become_the_workers() {
        for (sampler, schedule, expected) in [
            ("Euler a", None, "euler_a"),
            ("Euler a", Some("automatic"), "euler_a"),
            ("k_euler_a", Some("Automatic"), "euler_a"),
            ("Euler", Some("Karras"), "euler_karras"),
            ("DPM++ 2M", Some("karras"), "dpmpp_2m_karras"),
            ("DPM++ 2M Karras", None, "dpmpp_2m_karras"),
            // What the web UI's own `Automatic` chooses.
            ("DPM++ 2M", None, "dpmpp_2m_karras"),
            (
                "DPM++ 2M SDE",
                Some("Automatic"),
                "dpmpp_2m_sde_exponential",
            ),
            ("DPM++ 2M", Some("uniform"), "dpmpp_2m"),
            ("DPM++ 2M", Some("SGM Uniform"), "dpmpp_2m_sgm_uniform"),
            ("DDIM", Some("Automatic"), "ddim"),
        ] {
            assert_eq!(
                named(sampler, schedule).as_deref(),
                Some(expected),
                "{sampler} {schedule:?}"
            );
        }
        assert_eq!(scheduler(None, None).unwrap(), None);
        assert_eq!(scheduler(None, Some("automatic")).unwrap(), None);
    }

    #[test]
    fn every_name_is_one_that_the_library_knows() {
        for entry in sd_scheduler::ALL {
            for schedule in SigmaSchedule::ALL {
                let Ok(Some(name)) = scheduler(Some(entry.label), Some(schedule.label())) else {
                    continue;
                };
                let found = sd_scheduler::entry(&name).unwrap();
                assert_eq!(found.name, entry.name, "{name}");
                assert_eq!(labels(&name).0, entry.label, "{name}");
            }
        }
        assert_eq!(labels("dpmpp_2m_karras"), ("DPM++ 2M".into(), "Karras"));
        assert_eq!(labels("euler_a"), ("Euler a".into(), "Automatic"));
    }

    #[test]
    fn unknown_names_are_refused_by_field() {
        for (sampler, schedule, field) in [
            (Some("DPM fast"), None, "sampler_name"),
            (Some("Euler"), Some("KL Optimal"), "scheduler"),
            (Some("DDIM"), Some("Karras"), "scheduler"),
            (None, Some("Karras"), "scheduler"),
        ] {
            let error = scheduler(sampler, schedule).unwrap_err();
            assert_eq!(
                error.param.as_deref(),
                Some(field),
                "{sampler:?} {schedule:?}"
            );
        }
    }
}
