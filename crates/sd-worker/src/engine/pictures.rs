//! From a run to PNG files.

use sd_pipeline::{Pipeline, RgbImage, Run};
use sha2::{Digest, Sha256};

use super::{batch::guarded, shared::failed};
use crate::{
    hex,
    jobs::{ErrorCode, Image, PreviewKind},
    png,
    store::{Outcome, Picture},
};

/// The pictures of a finished run, with their metadata. The same run gives the same bytes.
pub(super) fn finished(pipeline: &Pipeline, run: &Run) -> Result<Vec<Picture>, Outcome> {
    let pictures = guarded(|| run.finish(pipeline))?;
    let pictures = pictures.iter().enumerate();
    pictures
        .map(|(index, picture)| {
            let (parameters, metadata) = guarded(|| {
                let parameters = pipeline.a1111_parameters(run.job(), index)?;
                Ok((parameters, pipeline.metadata(run.job(), index)?.to_string()))
            })?;
            let texts = [("parameters", parameters.as_str()), ("sd", &metadata)];
            let png = encode(picture, &texts)?;
            let image = Image {
                index,
                sha256: hex::encode(&Sha256::digest(&png)),
                width: picture.width(),
                height: picture.height(),
                seed: run.job().image_seed(index),
            };
            Ok(Picture { image, png })
        })
        .collect()
}

/// The first picture as it looks so far, as a PNG file.
pub(super) fn preview(
    pipeline: &Pipeline,
    run: &Run,
    kind: PreviewKind,
) -> Result<Vec<u8>, Outcome> {
    let picture = guarded(|| run.preview_of(pipeline, kind, 0))?;
    encode(&picture, &[])
}

fn encode(picture: &RgbImage, texts: &[(&str, &str)]) -> Result<Vec<u8>, Outcome> {
    let encoded = png::encode(picture, texts);
    encoded.map_err(|error| failed(ErrorCode::Internal, error.to_string()))
}
