//! Draws the plots of docs/schedulers.md: `cargo run -p sd-scheduler --example plots -- docs`.

use std::{error::Error, fmt::Write, num::NonZeroUsize, path::PathBuf};

use sd_config::{PredictionType, SchedulerFile};
use sd_scheduler::{
    ALL, Overrides, SchedulerConfig, SigmaSchedule, SigmaSupport, from_file_as,
    testing::gaussian_error,
};

const SIZE: (f64, f64) = (760.0, 420.0);
const MARGIN: (f64, f64) = (60.0, 40.0);
const LEGEND: f64 = 150.0;

/// A curve with its name.
type Curve = (String, Vec<(f64, f64)>);

/// A plot with a logarithmic axis upwards, and one to the right if `log_x`.
struct Plot<'a> {
    title: &'a str,
    x: &'a str,
    y: &'a str,
    log_x: bool,
    curves: Vec<Curve>,
}

impl Plot<'_> {
    fn svg(&self) -> Result<String, std::fmt::Error> {
        let points = || self.curves.iter().flat_map(|(_, points)| points);
        let range = |values: &mut dyn Iterator<Item = f64>| {
            values.fold((f64::INFINITY, f64::NEG_INFINITY), |(min, max), value| {
                (min.min(value), max.max(value))
            })
        };
        let scale_x = |x: f64| if self.log_x { x.log10() } else { x };
        let (left, right) = range(&mut points().map(|(x, _)| scale_x(*x)));
        let (low, high) = range(&mut points().map(|(_, y)| y.log10()));
        let (low, high) = (low.floor(), high.ceil());
        let (width, height) = (SIZE.0 - 2.0 * MARGIN.0 - LEGEND, SIZE.1 - 2.0 * MARGIN.1);
        let at_x = |x: f64| MARGIN.0 + (scale_x(x) - left) / (right - left) * width;
        let at_y = |y: f64| MARGIN.1 + (high - y.log10()) / (high - low) * height;

        let mut svg = String::new();
        let (w, h) = SIZE;
        writeln!(
            svg,
            r#"<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {w} {h}" font-family="sans-serif" font-size="12">"#
        )?;
        writeln!(svg, r#"<rect width="{w}" height="{h}" fill="white"/>"#)?;
        writeln!(
            svg,
            r#"<text x="{}" y="20" font-size="14">{}</text>"#,
            MARGIN.0, self.title
        )?;
        let (bottom, end) = (MARGIN.1 + height, MARGIN.0 + width);
        for power in low as i32..=high as i32 {
            let y = at_y(10f64.powi(power));
            writeln!(
                svg,
                r##"<path d="M{} {y:.1}H{end:.1}" stroke="#ddd"/>"##,
                MARGIN.0
            )?;
            writeln!(
                svg,
                r#"<text x="{}" y="{:.1}" text-anchor="end">1e{power}</text>"#,
                MARGIN.0 - 6.0,
                y + 4.0
            )?;
        }
        let ticks = if self.log_x {
            vec![5.0, 10.0, 20.0, 50.0, 100.0]
        } else {
            vec![0.0, 5.0, 10.0, 15.0, 20.0]
        };
        for tick in ticks
            .into_iter()
            .filter(|tick| (left..=right).contains(&scale_x(*tick)))
        {
            writeln!(
                svg,
                r#"<text x="{:.1}" y="{:.1}" text-anchor="middle">{tick}</text>"#,
                at_x(tick),
                bottom + 16.0
            )?;
        }
        writeln!(
            svg,
            r#"<text x="{end:.1}" y="{:.1}" text-anchor="end">{}</text>"#,
            bottom + 32.0,
            self.x
        )?;
        writeln!(
            svg,
            r#"<text x="{end:.1}" y="20" text-anchor="end">{}</text>"#,
            self.y
        )?;
        for (index, (name, points)) in self.curves.iter().enumerate() {
            let hue = index * 360 / self.curves.len();
            let dash = if index % 2 == 0 {
                ""
            } else {
                r#" stroke-dasharray="5 3""#
            };
            let style =
                format!(r#"stroke="hsl({hue} 75% 40%)" stroke-width="1.6" fill="none"{dash}"#);
            let path: Vec<_> = points
                .iter()
                .map(|(x, y)| format!("{:.1},{:.1}", at_x(*x), at_y(*y)))
                .collect();
            writeln!(svg, r#"<polyline points="{}" {style}/>"#, path.join(" "))?;
            let y = MARGIN.1 + 10.0 + 18.0 * index as f64;
            writeln!(svg, r#"<path d="M{:.1} {y:.1}h24" {style}/>"#, end + 16.0)?;
            writeln!(
                svg,
                r#"<text x="{:.1}" y="{:.1}">{name}</text>"#,
                end + 46.0,
                y + 4.0
            )?;
        }
        svg.push_str("</svg>\n");
        Ok(svg)
    }
}

/// Stable Diffusion's schedule.
fn file() -> Result<SchedulerFile, Box<dyn Error>> {
    let json = r#"{"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "clip_sample": false,
                   "steps_offset": 1, "skip_prk_steps": true, "set_alpha_to_one": false}"#;
    Ok(SchedulerFile::parse(json)?)
}

fn configure(
    name: &str,
    sigmas: Option<SigmaSchedule>,
) -> Result<Box<dyn SchedulerConfig>, Box<dyn Error>> {
    let mut overrides = Overrides::default();
    overrides.sigmas = sigmas;
    Ok(from_file_as(name, &file()?, &overrides)?)
}

fn sigma_schedules() -> Result<Vec<Curve>, Box<dyn Error>> {
    let curve = |schedule: SigmaSchedule| -> Result<Curve, Box<dyn Error>> {
        let steps = NonZeroUsize::new(20).ok_or("no steps")?;
        let scheduler = configure("euler", Some(schedule))?.build(steps)?;
        let starts = scheduler.plan().levels()[..20].iter().enumerate();
        Ok((
            schedule.to_string(),
            starts
                .map(|(step, level)| (step as f64, level.karras_sigma()))
                .collect(),
        ))
    };
    SigmaSchedule::ALL.into_iter().map(curve).collect()
}

fn convergence() -> Result<Vec<Curve>, Box<dyn Error>> {
    let deterministic = ALL.iter().filter(|entry| !entry.stochastic);
    let curve = |entry: &sd_scheduler::Entry| -> Result<Curve, Box<dyn Error>> {
        let sigmas = (entry.sigmas == SigmaSupport::File).then_some(SigmaSchedule::Karras);
        let config = configure(entry.name, sigmas)?;
        let mut points = Vec::new();
        for steps in [5, 7, 10, 14, 20, 28, 40, 56, 80]
            .into_iter()
            .filter_map(NonZeroUsize::new)
        {
            let calls = config.build(steps)?.plan().calls();
            let error = gaussian_error(config.as_ref(), PredictionType::Epsilon, steps)?;
            points.push((calls as f64, error.max(1e-7)));
        }
        Ok((entry.name.to_string(), points))
    };
    deterministic.map(curve).collect()
}

fn main() -> Result<(), Box<dyn Error>> {
    let folder = PathBuf::from(
        std::env::args()
            .nth(1)
            .ok_or("give the folder to write to")?,
    );
    let sigmas = Plot {
        title: "Sigma schedules, 20 steps",
        x: "step",
        y: "sigma",
        log_x: false,
        curves: sigma_schedules()?,
    };
    std::fs::write(folder.join("sigma-schedules.svg"), sigmas.svg()?)?;
    let convergence = Plot {
        title: "Convergence on normal data, Karras sigmas",
        x: "network calls",
        y: "relative error",
        log_x: true,
        curves: convergence()?,
    };
    std::fs::write(folder.join("convergence.svg"), convergence.svg()?)?;
    Ok(())
}
