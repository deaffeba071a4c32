//! `consumer MODEL_FOLDER PICTURE.ppm [PROMPT]`

use std::{env, error::Error, fs, path::Path};

fn main() -> Result<(), Box<dyn Error>> {
    let args: Vec<String> = env::args().skip(1).collect();
    let (model, picture, prompt) = match args.as_slice() {
        [model, picture] => (model, picture, "a red circle on a white background"),
        [model, picture, prompt] => (model, picture, prompt.as_str()),
        _ => return Err("usage: consumer MODEL_FOLDER PICTURE.ppm [PROMPT]".into()),
    };
    fs::write(
        picture,
        consumer::draw(Path::new(model), prompt, 1)?.to_ppm(),
    )?;
    Ok(())
}
