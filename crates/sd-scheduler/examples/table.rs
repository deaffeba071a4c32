//! Writes the table of docs/schedulers.md: `cargo run -p sd-scheduler --example table`.

use sd_scheduler::{ALL, Entry, SigmaSupport};

fn row(entry: &Entry) -> String {
    let settings: Vec<_> = entry
        .settings
        .iter()
        .map(|setting| format!("`{setting}`"))
        .collect();
    let class = match (entry.class, &settings[..]) {
        ("", _) => "-".to_string(),
        (class, []) => format!("`{class}`"),
        (class, settings) => format!("`{class}` {}", settings.join(" ")),
    };
    let aliases: Vec<_> = entry
        .aliases
        .iter()
        .map(|alias| format!("`{alias}`"))
        .collect();
    let sigmas = match entry.sigmas {
        SigmaSupport::File => "yes",
        SigmaSupport::Override => "when asked for",
        SigmaSupport::Timesteps | SigmaSupport::Fixed => "no",
    };
    let (least, most) = entry.good_steps;
    format!(
        "| `{}` | {} | {class} | {} | {} | {} | {} | {least}-{most} | {sigmas} |",
        entry.name,
        entry.label,
        aliases.join(" "),
        entry.order,
        entry.calls_per_step,
        if entry.stochastic { "yes" } else { "no" },
    )
}

/// The table, in Markdown.
fn table() -> String {
    let head = "| name | label | diffusers | also known as | order | calls a step | draws noise | good steps | sigma schedules |\n\
                |---|---|---|---|---|---|---|---|---|";
    let rows = ALL.iter().map(row);
    std::iter::once(head.to_string())
        .chain(rows)
        .collect::<Vec<_>>()
        .join("\n")
}

#[expect(clippy::print_stdout, reason = "this is what the example is for")]
fn main() {
    println!("{}", table());
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_documentation_has_this_table() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/schedulers.md");
        let page = std::fs::read_to_string(path).unwrap();
        assert!(
            page.contains(&super::table()),
            "docs/schedulers.md is out of date, write it anew with this example"
        );
    }
}
