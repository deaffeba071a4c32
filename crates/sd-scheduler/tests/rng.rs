//! The generator against `torch.randn`, from tests/golden/rng.

use candle_core::Device;
use sd_scheduler::rng::TorchGenerator;

#[test]
fn normals_are_those_of_torch_bit_for_bit() {
    let path = concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/../../tests/golden/rng/randn.safetensors"
    );
    let golden = candle_core::safetensors::load(path, &Device::Cpu).unwrap();
    let mut compared = 0;
    for (name, first) in golden.iter().filter(|(name, _)| name.ends_with("call0")) {
        let (seed, count) = name.strip_prefix("seed").unwrap().split_once("_n").unwrap();
        let count = count.strip_suffix("_call0").unwrap().parse().unwrap();
        let mut generator = TorchGenerator::new(seed.parse().unwrap());
        for expected in [first, &golden[&name.replace("call0", "call1")]] {
            let expected: Vec<f32> = expected.flatten_all().unwrap().to_vec1().unwrap();
            let found = generator.randn_f32(count);
            assert_eq!(found.len(), expected.len());
            let differing = found
                .iter()
                .zip(&expected)
                .position(|(found, expected)| found != expected);
            assert_eq!(differing, None, "{name}: the first that is not equal");
            compared += count;
        }
    }
    assert!(compared > 10_000, "the fixture is nearly empty");
}
