//! Previews: what they show, and that a run does not notice them.

mod common;

use common::{finish, golden, pictures, pipeline, request};
use sd_pipeline::{
    Device, Error, LatentRgb, LatentRgbFit, ModelSource, Pipeline, PreviewKind, Request, RgbImage,
    Run, Tensor, builtin_model, to_rgb,
};

const KINDS: [PreviewKind; 3] = [PreviewKind::Linear, PreviewKind::Tiny, PreviewKind::Full];

/// The tiny v1.5 with a tiny decoder, both of random weights.
fn with_tiny_vae() -> Pipeline {
    let source = ModelSource::Dir(golden("models/sd15"));
    let tiny_vae = golden("tiny_vaes/four-stages");
    Pipeline::builder(source)
        .tiny_vae(tiny_vae)
        .build()
        .unwrap()
}

/// The built-in model with another `sd_latent_rgb`, or without.
fn builtin_with(colours: Option<&LatentRgb>) -> Pipeline {
    let ModelSource::Embedded(mut model) = builtin_model() else {
        panic!("the built-in model is embedded")
    };
    let change = |(path, bytes): &(&'static str, &'static [u8])| match *path {
        "vae/config.json" => {
            let mut config: serde_json::Value = serde_json::from_slice(bytes).unwrap();
            config["sd_latent_rgb"] = serde_json::to_value(colours).unwrap();
            (*path, &*serde_json::to_vec(&config).unwrap().leak())
        }
        path => (path, *bytes),
    };
    model.files = model.files.iter().map(change).collect::<Vec<_>>().leak();
    Pipeline::builder(ModelSource::Embedded(model))
        .build()
        .unwrap()
}

fn shapes(prompt: &str, seed: u64) -> Request {
    Request {
        seed: Some(seed),
        num_inference_steps: Some(10),
        scheduler: Some("dpmpp_2m".into()),
        ..Request::new(prompt)
    }
}

fn finished(pipeline: &Pipeline, request: &Request) -> Run {
    let mut run = pipeline.start(request).unwrap();
    while run.advance(pipeline).unwrap().is_some() {}
    run
}

/// Of a run's only picture.
fn preview(run: &Run, pipeline: &Pipeline, kind: PreviewKind) -> RgbImage {
    let mut previews = run.preview(pipeline, kind).unwrap();
    assert_eq!(previews.len(), 1);
    previews.remove(0)
}

/// The means of the squares that a small picture's pixels stand for.
fn pooled(picture: &RgbImage, (width, height): (u32, u32)) -> Vec<f64> {
    let (dx, dy) = (picture.width() / width, picture.height() / height);
    let mean = |x, y, channel: usize| {
        let square = (0..dx * dy).map(|i| picture.get_pixel(x * dx + i % dx, y * dy + i / dx));
        square.map(|pixel| f64::from(pixel.0[channel])).sum::<f64>() / f64::from(dx * dy)
    };
    let places = (0..height).flat_map(|y| (0..width).map(move |x| (x, y)));
    places
        .flat_map(|(x, y)| [0, 1, 2].map(|channel| mean(x, y, channel)))
        .collect()
}

/// Pearson's correlation of a small picture with the means of a large one, over all pixels and channels.
fn resemblance(small: &RgbImage, large: &RgbImage) -> f64 {
    let large = pooled(large, small.dimensions());
    let small: Vec<f64> = small.as_raw().iter().copied().map(f64::from).collect();
    let centred = |values: &[f64]| {
        let mean = values.iter().sum::<f64>() / values.len() as f64;
        values.iter().map(|value| value - mean).collect::<Vec<_>>()
    };
    let (a, b) = (centred(&small), centred(&large));
    let product = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
    product(&a, &b) / (product(&a, &a) * product(&b, &b)).sqrt()
}

#[test]
fn one_picture_is_previewed_as_with_the_others() {
    let pipeline = with_tiny_vae();
    let request = Request {
        num_images: Some(3),
        ..request("a cat")
    };
    let mut run = pipeline.start(&request).unwrap();
    run.advance(&pipeline).unwrap();
    for kind in KINDS {
        let all = run.preview(&pipeline, kind).unwrap();
        assert_eq!(all.len(), 3);
        assert_ne!(all[0], all[1]);
        for (index, expected) in all.iter().enumerate() {
            let one = run.preview_of(&pipeline, kind, index).unwrap();
            assert_eq!(&one, expected, "{kind} {index}");
        }
        let error = run.preview_of(&pipeline, kind, 3).unwrap_err();
        assert!(matches!(error, Error::Field { field: "image", .. }));
    }
}

#[test]
fn a_run_does_not_notice_previews() {
    let pipeline = with_tiny_vae();
    // Stochastic: a preview must not draw from the run's generators either.
    let request = Request {
        num_images: Some(2),
        scheduler: Some("euler_a".into()),
        ..request("a cat")
    };
    let mut run = pipeline.start(&request).unwrap();
    loop {
        let before = run.snapshot().unwrap();
        for kind in KINDS {
            let side = if kind == PreviewKind::Linear { 8 } else { 64 };
            let previews = run.preview(&pipeline, kind).unwrap();
            assert_eq!(previews.len(), 2);
            assert!(
                previews
                    .iter()
                    .all(|picture| picture.dimensions() == (side, side)),
                "{kind}"
            );
        }
        assert_eq!(run.snapshot().unwrap(), before);
        if run.advance(&pipeline).unwrap().is_none() {
            break;
        }
    }
    assert_eq!(finish(&mut run, &pipeline), pictures(&pipeline, &request));
}

#[test]
fn a_full_preview_of_the_end_is_the_picture() {
    // Euler's last step ends on the denoised latents.
    let pipeline = pipeline("sd15");
    let request = Request {
        scheduler: Some("euler".into()),
        ..request("a cat")
    };
    let run = finished(&pipeline, &request);
    let picture = run.finish(&pipeline).unwrap().remove(0);
    let preview = preview(&run, &pipeline, PreviewKind::Full);
    let apart = picture.as_raw().iter().zip(preview.as_raw());
    let apart = apart.map(|(a, b)| a.abs_diff(*b)).max();
    assert!(apart <= Some(1), "{apart:?} levels apart");
}

#[test]
fn pictures_of_a_batch_are_previewed_in_their_order() {
    let pipeline = pipeline("sd15");
    let batch = Request {
        num_images: Some(2),
        ..request("a cat")
    };
    let second = Request {
        seed: batch.seed.map(|seed| seed + 1),
        ..request("a cat")
    };
    for kind in [PreviewKind::Linear, PreviewKind::Full] {
        let both = finished(&pipeline, &batch)
            .preview(&pipeline, kind)
            .unwrap();
        let alone = preview(&finished(&pipeline, &second), &pipeline, kind);
        assert!(both[1] == alone && both[0] != alone, "{kind}");
    }
}

#[test]
fn a_linear_preview_resembles_the_picture() {
    /// What is left is what eight by eight pixels of one latent differ by.
    const BOUND: f64 = 0.97;
    let request = shapes(
        "a small blue star above a yellow heart on a green background",
        3,
    );
    let own = pipeline("builtin");
    let picture = finished(&own, &request).finish(&own).unwrap().remove(0);
    let seen = |pipeline: &Pipeline| {
        let run = finished(pipeline, &request);
        let preview = preview(&run, pipeline, PreviewKind::Linear);
        assert_eq!(preview.dimensions(), (16, 16));
        resemblance(&preview, &picture)
    };
    let (committed, fitted) = (seen(&own), seen(&builtin_with(None)));
    assert!(committed > BOUND && fitted > BOUND, "{committed} {fitted}");

    let mut wrong = own.latent_rgb().unwrap().clone();
    wrong.factors.swap(1, 3);
    let swapped = seen(&builtin_with(Some(&wrong)));
    wrong.factors.swap(1, 3);
    wrong
        .factors
        .iter_mut()
        .for_each(|colour| colour.rotate_left(1));
    let turned = seen(&builtin_with(Some(&wrong)));
    assert!(swapped < BOUND && turned < BOUND, "{swapped} {turned}");
}

#[test]
fn an_early_preview_shows_what_is_to_come() {
    let pipeline = pipeline("builtin");
    let request = shapes("a large purple flower on a yellow background", 5);
    let mut run = pipeline.start(&request).unwrap();
    let noise = preview(&run, &pipeline, PreviewKind::Linear);
    for _ in 0..3 {
        run.advance(&pipeline).unwrap();
    }
    let early = preview(&run, &pipeline, PreviewKind::Linear);
    let noisy = to_rgb(&run.decode(&pipeline).unwrap()).unwrap().remove(0);

    let snapshot = run.snapshot().unwrap();
    let mut resumed = pipeline.resume(&snapshot).unwrap();
    assert!(preview(&resumed, &pipeline, PreviewKind::Linear) != early);
    for run in [&mut run, &mut resumed] {
        run.advance(&pipeline).unwrap();
    }
    let next = [&run, &resumed].map(|run| preview(run, &pipeline, PreviewKind::Linear));
    assert!(next[0] == next[1]);

    while run.advance(&pipeline).unwrap().is_some() {}
    let picture = run.finish(&pipeline).unwrap().remove(0);
    let [noise, early] = [noise, early].map(|preview| resemblance(&preview, &picture));
    let noisy = resemblance(&image::imageops::thumbnail(&noisy, 16, 16), &picture);
    assert!(
        noise < 0.3 && noisy < 0.7 && early > 0.8,
        "{noise} {noisy} {early}"
    );
}

#[test]
fn the_fit_to_the_autoencoder_explains_the_models_own_pictures() {
    let pipeline = pipeline("builtin");
    let mut fit = LatentRgbFit::new(4);
    for (seed, prompt) in (100..).zip([
        "a red circle on a white background",
        "a large purple flower on a yellow background",
        "a pink heart on a gray background",
        "a black cross to the left of a cyan diamond on an orange background",
        "a brown square inside a large blue circle on a green background",
    ]) {
        let run = finished(&pipeline, &shapes(prompt, seed));
        let picture = run.decode(&pipeline).unwrap().affine(2., -1.).unwrap();
        fit.add(&run.latents().unwrap(), &picture).unwrap();
    }
    let best = fit.r_squared(&fit.solve());
    let committed = fit.r_squared(pipeline.latent_rgb().unwrap());
    let fitted = fit.r_squared(builtin_with(None).latent_rgb().unwrap());
    assert!(
        best > 0.95 && best >= committed.max(fitted),
        "{best} {committed} {fitted}"
    );
    assert!(committed > 0.93 && fitted > 0.93, "{committed} {fitted}");
}

#[test]
fn least_squares_finds_an_exact_map() {
    let colours = LatentRgb {
        factors: vec![[0.3, -0.1, 0.2], [0.05, 0.2, -0.25]],
        bias: [0.1, -0.2, 0.05],
    };
    let latents: Vec<f32> = (0..2 * 2 * 3 * 4).map(|i| ((i * i) as f32).sin()).collect();
    let latents = Tensor::from_vec(latents, (2, 2, 3, 4), &Device::Cpu).unwrap();
    let factors: Vec<f32> = [0, 1, 2]
        .iter()
        .flat_map(|&rgb| colours.factors.iter().map(move |f| f[rgb] as f32))
        .collect();
    let factors = Tensor::from_vec(factors, (3, 2, 1, 1), &Device::Cpu).unwrap();
    let bias = Tensor::new(&[0.1_f32, -0.2, 0.05], &Device::Cpu)
        .unwrap()
        .reshape((1, 3, 1, 1))
        .unwrap();
    let small = latents
        .conv2d(&factors, 0, 1, 1, 1)
        .unwrap()
        .broadcast_add(&bias)
        .unwrap();
    let mut fit = LatentRgbFit::new(2);
    fit.add(&latents, &small.upsample_nearest2d(15, 20).unwrap())
        .unwrap();
    let found = fit.solve();
    let values = |map: &LatentRgb| [map.factors.concat(), map.bias.to_vec()].concat();
    for (found, expected) in values(&found).iter().zip(values(&colours)) {
        assert!((found - expected).abs() < 1e-4, "{found:?}");
    }
    assert!(fit.r_squared(&found) > 0.9999);
    let constant = LatentRgb {
        factors: vec![[0.; 3]; 2],
        bias: [10.; 3],
    };
    assert!(fit.r_squared(&constant) < 0.);

    for shape in [
        vec![2, 3, 15, 21],
        vec![1, 3, 15, 20],
        vec![2, 4, 15, 20],
        vec![2, 3, 2, 3],
        vec![3, 15, 20],
    ] {
        let pictures = Tensor::zeros(shape, sd_pipeline::DType::F32, &Device::Cpu).unwrap();
        assert!(
            matches!(fit.add(&latents, &pictures), Err(Error::NotImages { .. })),
            "{pictures}"
        );
    }
}

#[test]
fn a_tiny_preview_needs_a_tiny_decoder_of_the_family() {
    let pipeline = pipeline("sd15");
    let run = pipeline.start(&request("a cat")).unwrap();
    let refused = run.preview(&pipeline, PreviewKind::Tiny);
    assert!(matches!(refused, Err(Error::NoTinyVae)));

    let source = ModelSource::Dir(golden("models/sd15"));
    let other = Pipeline::builder(source)
        .tiny_vae(golden("tiny_vaes/other-numbers"))
        .build();
    assert!(matches!(
        other.unwrap_err(),
        Error::Model(sd_models::Error::OtherLatents {
            found: (5, 3),
            expected: (4, 8),
            ..
        })
    ));
}

#[test]
fn a_run_is_previewed_by_its_own_pipeline() {
    let run = pipeline("sd15").start(&request("a cat")).unwrap();
    let previewed = run.preview(&with_tiny_vae(), PreviewKind::Linear);
    assert!(matches!(previewed, Err(Error::OtherPipeline)));
}

#[test]
fn kinds_have_one_name_each() {
    for (kind, name) in KINDS.into_iter().zip(["linear", "tiny", "full"]) {
        assert_eq!(kind.to_string(), name);
        assert_eq!(name.parse::<PreviewKind>().unwrap(), kind);
        assert_eq!(serde_json::to_value(kind).unwrap(), name);
    }
    let error = "taesd".parse::<PreviewKind>().unwrap_err().to_string();
    assert_eq!(
        error,
        "preview_kind: got taesd, expected linear, tiny or full"
    );
}
