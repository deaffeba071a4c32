//! The API's description, and the examples of its pages in `docs`, which are run as they stand.

use std::{fs, path::Path, process::Command};

use serde_json::Value;

use crate::worker::Worker;

/// Every object below `value`, with the path to it.
fn visit<'a>(
    path: String,
    value: &'a Value,
    found: &mut dyn FnMut(&str, &'a serde_json::Map<String, Value>),
) {
    match value {
        Value::Object(fields) => {
            found(&path, fields);
            for (name, value) in fields {
                visit(format!("{path}/{name}"), value, found);
            }
        }
        Value::Array(items) => {
            for (index, value) in items.iter().enumerate() {
                visit(format!("{path}/{index}"), value, found);
            }
        }
        _ => {}
    }
}

#[test]
fn the_description_is_whole() {
    let (worker, _folder) = Worker::fresh(&[]);
    let reply = worker.client.get("/openapi.json");
    assert_eq!(reply.header("content-type"), Some("application/json"));
    let api = reply.json();
    assert!(api["openapi"].as_str().unwrap().starts_with("3.1"));
    let paths = api["paths"].as_object().unwrap();
    for path in [
        "/v1/jobs",
        "/v1/jobs/{job_id}",
        "/v1/jobs/{job_id}/stream",
        "/v1/jobs/{job_id}/images/{index}",
        "/v1/models",
        "/v1/schedulers",
        "/health",
        "/ready",
        "/metrics",
        "/openapi.json",
        "/docs",
    ] {
        assert!(paths.contains_key(path), "{path}");
    }
    visit(String::new(), &api, &mut |path, fields| {
        if let Some(target) = fields.get("$ref").and_then(Value::as_str) {
            assert!(
                api.pointer(&target[1..]).is_some(),
                "{path}: {target} is not there"
            );
        }
        if let Some(properties) = fields.get("properties").and_then(Value::as_object) {
            // The other APIs' fields are described where those come from.
            let foreign = ["A1111", "OpenAi", "Form"]
                .iter()
                .any(|part| path.contains(part));
            for (name, schema) in properties.iter().filter(|_| !foreign) {
                let described = schema.get("description").is_some()
                    || name == "operation"
                    || schema.get("$ref").is_some();
                assert!(described, "{path}: {name} is not described");
            }
        }
    });
    for scheme in ["bearer", "api_key", "basic"] {
        assert!(
            api["components"]["securitySchemes"][scheme].is_object(),
            "{scheme}"
        );
    }
    let list = &api["paths"]["/v1/jobs"]["get"];
    let names: Vec<_> = list["parameters"]
        .as_array()
        .unwrap()
        .iter()
        .map(|parameter| &parameter["name"])
        .collect();
    assert_eq!(names, ["state", "limit", "cursor"]);
}

#[test]
fn the_page_needs_nothing_from_elsewhere() {
    let (worker, _folder) = Worker::fresh(&[]);
    let page = worker.client.get("/docs");
    assert_eq!(
        page.header("content-type"),
        Some("text/html; charset=utf-8")
    );
    let text = page.text();
    assert!(!text.contains("http://") && !text.contains("https://") && !text.contains("//cdn"));
    assert!(
        page.header("content-security-policy")
            .unwrap()
            .starts_with("default-src 'none'")
    );
    for name in ["src=", "@import", "innerHTML", "eval("] {
        assert!(!text.contains(name), "{name}");
    }
}

/// A fenced block of `sh`, and the line it begins at.
fn examples(text: &str) -> Vec<(usize, String)> {
    let mut found = vec![];
    let mut block: Option<(usize, String)> = None;
    for (number, line) in (1..).zip(text.lines()) {
        match (&mut block, line) {
            (None, "```sh") => block = Some((number, String::new())),
            (Some(_), "```") => found.extend(block.take()),
            (Some((_, script)), line) => {
                script.push_str(line);
                script.push('\n');
            }
            _ => {}
        }
    }
    found
}

/// The blocks run one after the other in one shell, as a reader would type them. A line `#=> TEXT` after a command is what
/// has to be in its output.
#[test]
fn the_examples_of_the_documentation_run() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("keys"), "docs:the-key-of-the-docs\n").unwrap();
    let worker = Worker::start(folder.path(), &["--api-key-file", "keys"]);
    for (page, at_least) in [
        ("http-api.md", 10),
        ("openai-api.md", 3),
        ("a1111-api.md", 1),
    ] {
        run_examples(page, at_least, folder.path(), &worker);
    }
    worker.assert_healthy();
}

fn run_examples(page: &str, at_least: usize, folder: &Path, worker: &Worker) {
    let docs = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../../docs")
        .join(page);
    let text = fs::read_to_string(&docs).unwrap();
    let blocks = examples(&text);
    assert!(
        blocks.len() >= at_least,
        "{page}: {} examples",
        blocks.len()
    );
    let mut script = "set -euo pipefail\n".to_owned();
    let mut expectations = vec![];
    for (number, block) in &blocks {
        script += &format!("echo '<<< {number}'\n{block}");
        let expected = block.lines().filter_map(|line| line.strip_prefix("#=> "));
        expectations.extend(expected.map(|part| (*number, part.to_owned())));
    }
    let output = Command::new("bash")
        .args(["-c", &script])
        .current_dir(folder)
        .env("SD_WORKER", format!("http://{}", worker.client.address()))
        .env("SD_KEY", "the-key-of-the-docs")
        .output()
        .unwrap();
    let shown = String::from_utf8_lossy(&output.stdout).into_owned();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{page}: {shown}\n{errors}");
    for (number, part) in expectations {
        let start = format!("<<< {number}\n");
        let block = shown.split_once(&start).unwrap().1;
        let block = block.split("<<< ").next().unwrap();
        assert!(
            block.contains(&part),
            "{page}, line {number}: `{part}` is not in:\n{block}"
        );
    }
}
