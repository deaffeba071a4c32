//! The names tensors have had over the years, brought to one form.

use crate::Component;

/// The name current `diffusers` and `transformers` write for `name`.
pub(super) fn normalise(component: Component, name: &str) -> String {
    match component {
        // `CLIPTextModel` has the prefix up to transformers 5.5, `CLIPTextModelWithProjection`
        // always.
        Component::TextEncoder | Component::TextEncoder2 => {
            name.strip_prefix("text_model.").unwrap_or(name).to_owned()
        }
        Component::Vae => modern_attention(name),
        Component::TinyVae => layer_of_decoder(name).unwrap_or_else(|| name.to_owned()),
        Component::Unet => name.to_owned(),
    }
}

/// `*.attentions.0.query.weight` -> `*.attentions.0.to_q.weight`, as diffusers'
/// `_convert_deprecated_attention_blocks` (models/modeling_utils.py).
fn modern_attention(name: &str) -> String {
    let mut parts: Vec<&str> = name.split('.').collect();
    if let [.., "attentions", _, layer, _] = parts.as_mut_slice() {
        *layer = match *layer {
            "query" => "to_q",
            "key" => "to_k",
            "value" => "to_v",
            "proj_attn" => "to_out.0",
            other => other,
        };
    }
    parts.join(".")
}

/// `3.conv.0.weight` -> `decoder.layers.2.conv.0.weight`: TAESD was published as a bare list of layers, of which the
/// first is the clamp that diffusers does not count.
fn layer_of_decoder(name: &str) -> Option<String> {
    let (index, rest) = name.split_once('.')?;
    let index = index.parse::<u8>().ok()?.checked_sub(1)?;
    Some(format!("decoder.layers.{index}.{rest}"))
}

/// Whether a tensor that nobody asked for deserves no warning.
pub(super) fn is_ignored(component: Component, name: &str) -> bool {
    match component {
        Component::TextEncoder | Component::TextEncoder2 => name == "embeddings.position_ids",
        // Of an autoencoder only the decoder is built.
        Component::TinyVae => name.starts_with("encoder."),
        Component::Unet | Component::Vae => false,
    }
}

/// Whether a tensor of shape `found` can be used where `expected` is asked for: equal shapes, or a
/// 1x1 convolution in place of a linear layer, as the first autoencoders were stored.
pub(super) fn serves(found: &[usize], expected: &[usize]) -> bool {
    match expected {
        [_, _] => matches!(found.strip_prefix(expected), Some([] | [1] | [1, 1])),
        _ => found == expected,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clip_keys_lose_their_prefix() {
        for component in [Component::TextEncoder, Component::TextEncoder2] {
            assert_eq!(
                normalise(component, "text_model.final_layer_norm.bias"),
                "final_layer_norm.bias"
            );
            assert_eq!(
                normalise(component, "final_layer_norm.bias"),
                "final_layer_norm.bias"
            );
            assert_eq!(
                normalise(component, "text_projection.weight"),
                "text_projection.weight"
            );
        }
        assert_eq!(normalise(Component::Unet, "text_model.x"), "text_model.x");
    }

    #[test]
    fn old_attention_keys_of_the_autoencoder_are_renamed() {
        let name = |layer: &str| format!("decoder.mid_block.attentions.0.{layer}.bias");
        for (old, new) in [
            ("query", "to_q"),
            ("key", "to_k"),
            ("value", "to_v"),
            ("proj_attn", "to_out.0"),
        ] {
            assert_eq!(normalise(Component::Vae, &name(old)), name(new));
        }
        for kept in [
            name("group_norm"),
            name("to_q"),
            "encoder.value.weight".into(),
            "query".into(),
        ] {
            assert_eq!(normalise(Component::Vae, &kept), kept);
        }
    }

    #[test]
    fn layers_of_the_original_tiny_decoder_lose_the_clamp() {
        let name = |name| normalise(Component::TinyVae, name);
        assert_eq!(name("1.weight"), "decoder.layers.0.weight");
        assert_eq!(name("19.bias"), "decoder.layers.18.bias");
        assert_eq!(name("3.conv.0.weight"), "decoder.layers.2.conv.0.weight");
        for kept in [
            "0.weight",
            "decoder.layers.2.conv.0.weight",
            "-1.weight",
            "1",
            "999.weight",
        ] {
            assert_eq!(name(kept), kept);
        }
    }

    #[test]
    fn a_pointwise_convolution_serves_as_a_linear_layer_only() {
        assert!(
            serves(&[4, 8, 1, 1], &[4, 8])
                && serves(&[4, 8, 1], &[4, 8])
                && serves(&[4, 8], &[4, 8])
        );
        assert!(
            !serves(&[4, 8, 3, 3], &[4, 8])
                && !serves(&[8, 4], &[4, 8])
                && !serves(&[4, 8, 1, 1, 1], &[4, 8])
        );
        assert!(!serves(&[4, 8], &[4, 8, 1, 1]) && !serves(&[4, 1], &[4]) && !serves(&[], &[4, 8]));
    }
}
