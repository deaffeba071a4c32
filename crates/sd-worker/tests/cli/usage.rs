//! Help, refusals and exit codes.

use std::{fs, path::Path};

use candle_core::{Device, Tensor, safetensors};
use sd_config::Version;

use crate::{assert_done, assert_fails, folder, generate, golden, stderr, stdout, worker};

#[test]
fn help_names_flags_schedulers_and_versions() {
    let folder = folder();
    let output = worker(folder.path(), ["generate", "--help"]);
    assert_done(&output);
    let help = stdout(&output);
    let flags = "model version negative-prompt prompt-2 steps guidance-scale guidance-rescale scheduler eta clip-skip \
                 seed seed-mode width height num-images device dtype output dump-tensors";
    for flag in flags.split_whitespace() {
        assert!(help.contains(&format!("--{flag} ")), "{flag}: {help}");
    }
    for entry in sd_scheduler::ALL {
        assert!(
            help.contains(entry.name) && help.contains(entry.class),
            "{entry:?}: {help}"
        );
    }
    for version in Version::ALL {
        assert!(help.contains(version.name()), "{version}: {help}");
    }
    let version = worker(folder.path(), ["--version"]);
    assert_eq!(
        stdout(&version),
        concat!("sd-worker ", env!("CARGO_PKG_VERSION"), "\n")
    );
}

#[test]
fn wrong_usage_is_exit_code_2_and_says_what_is_allowed() {
    let folder = folder();
    let cases: &[(&[&str], &[&str])] = &[
        (&["--stpes", "3"], &["--stpes", "--steps"]),
        (&["--steps", "many"], &["--steps", "many"]),
        (&["--steps", "0"], &["--steps", "1"]),
        (&["--steps", "-1"], &["--steps", "-1"]),
        (
            &["--guidance-scale", "nan"],
            &["--guidance-scale", "0", "100"],
        ),
        (&["--width", "100"], &["--width", "100", "multiple of 8"]),
        (&["--height", "0"], &["--height", "0", "multiple of 8"]),
        (&["--eta", "2"], &["--eta", "2"]),
        (&["--num-images", "0"], &["--num-images", "0"]),
        (
            &["--scheduler", "eular"],
            &["--scheduler", "eular", "euler_a"],
        ),
        (&["--version", "v9"], &["v9", "v1.5"]),
        (&["--device", "tpu"], &["tpu", "cuda:N"]),
        (&["--dtype", "f64"], &["f64", "bf16"]),
        (&["--output", "out.jpg"], &["out.jpg", ".png"]),
        (
            &["--output", "-", "--num-images", "2"],
            &["--output", "one picture"],
        ),
        (&["--dump-tensors", "out.npz"], &["out.npz", ".safetensors"]),
        (&["--prompt-2", "a cat"], &["--prompt-2"]),
    ];
    for (args, parts) in cases {
        let output = generate(folder.path(), args);
        let text = stderr(&output);
        assert_eq!(output.status.code(), Some(2), "{args:?}: {text}");
        for part in *parts {
            assert!(text.contains(part), "{args:?}: `{part}` is not in: {text}");
        }
        assert!(output.stdout.is_empty());
    }
    assert_eq!(
        fs::read_dir(folder.path()).unwrap().count(),
        0,
        "a refused command left files"
    );
}

#[cfg(not(feature = "cuda"))]
#[test]
fn a_device_that_is_not_built_in_names_the_feature() {
    let output = generate(folder().path(), &["--device", "cuda:1"]);
    assert_fails(
        &output,
        2,
        &["--device cuda", "--features cuda", "--device cpu"],
    );
}

#[test]
fn a_missing_folder_is_found_before_the_work() {
    let folder = folder();
    for flag in [
        ["--output", "no/such/x.png"],
        ["--dump-tensors", "no/such/x.safetensors"],
    ] {
        let output = generate(folder.path(), &flag);
        assert_fails(&output, 1, &[flag[1], "no/such", "create it"]);
    }
}

#[test]
fn a_model_that_is_neither_folder_nor_repository_is_refused() {
    let output = generate(folder().path(), &["--model", "./no-such-model"]);
    assert_fails(&output, 1, &["no-such-model"]);
    let output = generate(folder().path(), &["--model", "a/b/c"]);
    assert_fails(&output, 1, &["a/b/c"]);
}

#[test]
fn a_broken_model_folder_names_the_file() {
    let folder = folder();
    let model = folder.path().join("model");
    copy(&golden("models/sd15"), &model);
    let unet = model.join("unet/diffusion_pytorch_model.safetensors");
    let bytes = fs::read(&unet).unwrap();

    fs::write(&unet, &bytes[..bytes.len() / 2]).unwrap();
    assert_fails(
        &generate(folder.path(), &["--model", "model"]),
        1,
        &["unet", "diffusion_pytorch_model.safetensors"],
    );

    fs::remove_file(&unet).unwrap();
    assert_fails(
        &generate(folder.path(), &["--model", "model"]),
        1,
        &["unet", "diffusion_pytorch_model.safetensors"],
    );

    fs::write(model.join("unet/config.json"), "{").unwrap();
    assert_fails(
        &generate(folder.path(), &["--model", "model"]),
        1,
        &["unet/config.json"],
    );
}

#[test]
fn weights_that_do_not_fit_are_named_in_two_lines() {
    let folder = folder();
    let model = folder.path().join("model");
    copy(&golden("models/sd15"), &model);
    let vae = model.join("vae/diffusion_pytorch_model.safetensors");
    fs::copy(model.join("unet/diffusion_pytorch_model.safetensors"), vae).unwrap();
    let output = generate(folder.path(), &["--model", "model"]);
    assert_fails(&output, 1, &["vae", "is missing"]);
}

#[test]
fn harmless_oddities_of_a_model_are_warnings() {
    let folder = folder();
    let model = folder.path().join("model");
    copy(&golden("models/sd15"), &model);
    let unet = model.join("unet/diffusion_pytorch_model.safetensors");
    let mut tensors = safetensors::load(&unet, &Device::Cpu).unwrap();
    tensors.insert(
        "left.over".to_owned(),
        Tensor::new(1f32, &Device::Cpu).unwrap(),
    );
    safetensors::save(&tensors, &unet).unwrap();
    let output = generate(folder.path(), &["--model", "model"]);
    assert_done(&output);
    assert!(
        stderr(&output).contains("warning: unet: "),
        "{}",
        stderr(&output)
    );
    assert!(
        stderr(&output).contains("`left.over`"),
        "{}",
        stderr(&output)
    );
}

#[test]
fn a_model_of_another_version_than_asked_for_is_refused() {
    let folder = folder();
    let output = generate(folder.path(), &["--model", "builtin", "--version", "xl"]);
    assert_fails(&output, 1, &["--version xl", "builtin"]);
}

#[test]
fn what_a_model_cannot_do_is_said_before_its_weights_are_read() {
    // All that there is of them, in the cache and in a folder, are their descriptions.
    let folder = folder();
    let [refiner, xl] = [Version::XlRefiner, Version::Xl].map(|version| {
        let model = folder
            .path()
            .join("hub/models--".to_owned() + &version.repo_id().replace('/', "--"));
        let commit = "0123456789abcdef0123456789abcdef01234567";
        fs::create_dir_all(model.join("refs")).unwrap();
        fs::write(model.join("refs/main"), commit).unwrap();
        let published = Path::new(env!("CARGO_MANIFEST_DIR"))
            .join("../sd-config/tests/published")
            .join(version.name());
        let snapshot = model.join("snapshots").join(commit);
        copy(&published, &snapshot);
        snapshot
    });
    let output = generate(folder.path(), &["--version", "xl-refiner"]);
    assert_fails(&output, 1, &["refiner"]);
    let output = generate(folder.path(), &["--version", "xl", "--width", "100"]);
    assert_fails(&output, 2, &["--width", "multiple of 8"]);
    let [refiner, xl] = [refiner, xl].map(|folder| folder.display().to_string());
    let output = generate(folder.path(), &["--model", &xl, "--steps", "0"]);
    assert_fails(&output, 2, &["--steps"]);
    let output = generate(folder.path(), &["--model", &xl, "--version", "v1.5"]);
    assert_fails(&output, 1, &["--version v1.5"]);
    let output = generate(
        folder.path(),
        &[
            "--model",
            &xl,
            "--refiner",
            &refiner,
            "--aesthetic-score",
            "11",
        ],
    );
    assert_fails(&output, 2, &["--aesthetic-score"]);
}

#[test]
fn models_lists_every_version_and_the_cache() {
    let folder = folder();
    let output = worker(folder.path(), ["models"]);
    assert_done(&output);
    let list = stdout(&output);
    for version in Version::ALL {
        assert!(
            list.contains(version.name()) && list.contains(version.repo_id()),
            "{list}"
        );
    }
    assert!(list.contains(folder.path().to_str().unwrap()), "{list}");
}

#[cfg(feature = "hub")]
#[test]
fn a_repository_is_taken_from_the_cache_when_offline() {
    let folder = folder();
    let output = generate(folder.path(), &["--model", "me/tiny"]);
    assert_fails(&output, 1, &["me/tiny", "HF_HUB_OFFLINE"]);

    let commit = "0123456789012345678901234567890123456789";
    let repository = folder.path().join("hub/models--me--tiny");
    copy(
        &golden("models/sd15"),
        &repository.join("snapshots").join(commit),
    );
    fs::create_dir_all(repository.join("refs")).unwrap();
    fs::write(repository.join("refs/main"), commit).unwrap();
    assert_done(&generate(folder.path(), &["--model", "me/tiny"]));
    assert!(folder.path().join("out.png").exists());
    assert!(stdout(&worker(folder.path(), ["models"])).contains("me/tiny"));
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap().map(Result::unwrap) {
        let to = to.join(entry.file_name());
        match entry.file_type().unwrap().is_dir() {
            true => copy(&entry.path(), &to),
            false => drop(fs::copy(entry.path(), to).unwrap()),
        }
    }
}
