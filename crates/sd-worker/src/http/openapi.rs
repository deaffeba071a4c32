//! The description of the API, made from the routes.

use std::sync::LazyLock;

use utoipa::openapi::{
    InfoBuilder, OpenApi, SecurityRequirement,
    security::{ApiKey, ApiKeyValue, HttpAuthScheme, HttpBuilder, SecurityScheme},
};

/// The whole description.
pub(super) fn document() -> &'static OpenApi {
    static DOCUMENT: LazyLock<OpenApi> = LazyLock::new(|| {
        let (_, mut document) = super::routes().split_for_parts();
        document.info = InfoBuilder::new()
            .title("sd-worker")
            .version(env!("CARGO_PKG_VERSION"))
            .description(Some(
                "Stable Diffusion over HTTP: durable jobs, their progress and their pictures.",
            ))
            .build();
        let schemes = [
            (
                "bearer",
                SecurityScheme::Http(HttpBuilder::new().scheme(HttpAuthScheme::Bearer).build()),
            ),
            (
                "api_key",
                SecurityScheme::ApiKey(ApiKey::Header(ApiKeyValue::new("X-Api-Key"))),
            ),
            (
                "basic",
                SecurityScheme::Http(HttpBuilder::new().scheme(HttpAuthScheme::Basic).build()),
            ),
        ];
        let components = document.components.get_or_insert_default();
        let mut any = vec![SecurityRequirement::default()];
        for (name, scheme) in schemes {
            components.add_security_scheme(name, scheme);
            any.push(SecurityRequirement::new::<_, [&str; 0], &str>(name, []));
        }
        document.security = Some(any);
        document
    });
    &DOCUMENT
}
