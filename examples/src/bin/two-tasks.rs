//! probe
use fisher_examples::*;
fn main() {
    let seed: u64 = std::env::args()
        .nth(1)
        .map_or(0, |s| s.parse().expect("seed"));
    let device = device::Backend::Flex.device().expect("device");
    let data = tasks::Data::generate(4000, 256, seed);
    device.seed(seed);
    let model = model::CausalTransformerConfig::new(tasks::VOCABULARY, tasks::CONTEXT)
        .init(&device.clone().autodiff());
    let t = std::time::Instant::now();
    let out = training::train(
        model,
        &data,
        12,
        seed,
        std::path::Path::new("/tmp/tt"),
        &device,
    )
    .expect("t");
    println!("{:?} {:?}", out.accuracy, t.elapsed());
}
