//! Training and captures with tensors on a Burn remote server: the numbers are those of the server's
//! device. Needs the feature `remote`.

use std::net::TcpListener;

use burn::optim::{GradientsParams, SgdConfig};
use burn::remote::RemoteHost;
use burn::server::{RemoteServer, TokenAuthorizer, WebSocketTransport};
use burn::tensor::Device;
use fisher_core::statistics::{Statistics, StatisticsConfig};
use fisher_tests::models::Sequences;
use fisher_tests::subjects::Translator;
use fisher_tests::tolerance::{BACKWARD, assert_close};
use fisher_train::batch::SampleLoss;
use fisher_train::capture::{CaptureConfig, Engine};
use fisher_train::monitor::{HookConfig, HookSource, NoiseScaleConfig, Reading, Schedule};

const TOKEN: &str = "a token";

/// A server of this machine's flex device, that only holders of the token may use.
fn serve() -> RemoteHost {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = listener.local_addr().expect("an address");
    let authorizer = TokenAuthorizer::new(TOKEN).expect("a token");
    let server = RemoteServer::new([Device::flex()]).with_authorizer(authorizer);
    std::thread::spawn(move || server.serve(WebSocketTransport::from_listener(listener)));
    RemoteHost::websocket(&format!("ws://{address}"))
}

/// Three steps with captures.
fn train(device: &Device, engine: Engine) -> (Statistics, Vec<Reading>) {
    let device = device.clone().autodiff();
    let mut model = Translator::init(true, &device);
    let data = Sequences::made_up(12, 5, &device);
    let schedule = Schedule::new().with_every_steps(Some(1)).with_at_end(true);
    let config = HookConfig::new(schedule)
        .with_statistics(StatisticsConfig::new())
        .with_capture(CaptureConfig::new().with_engine(engine))
        .with_noise(Some(NoiseScaleConfig::new()));
    let probes = Sequences::made_up(6, 5, &device).batches(3);
    let source = HookSource::Probes(vec![("task".into(), probes)]);
    let hook = config.init(&model, source).expect("a hook");
    let mut optimizer = SgdConfig::new().init();
    for batch in data.batches(4) {
        hook.step(&model, &batch).expect("a capture");
        let loss = model.sample_losses(&batch).sums().clone().sum();
        let gradients = GradientsParams::from_grads(loss.backward(), &model);
        model = optimizer.step(1e-2, model, gradients);
    }
    hook.finish(&model).expect("the end");
    (hook.statistics(), hook.history().readings().to_vec())
}

fn means(statistics: &Statistics) -> Vec<f64> {
    let task = statistics.task("task").expect("the task");
    let means = task.parameters().flat_map(|(_, p)| {
        let read = p.elementwise().expect("elements").read().expect("moments");
        read.mean.expect("a mean")
    });
    means.collect()
}

/// One test for both engines: two servers in one process get in each other's way.
#[test]
fn a_remote_device_gives_the_same_numbers() {
    let host = serve();
    let wrong = host.clone().with_credential("another token");
    assert!(
        Device::remote_options(&wrong).init().is_err(),
        "a wrong token is refused"
    );
    let host = host.with_credential(TOKEN);
    let remote = Device::remote_options(&host)
        .init()
        .expect("a remote device");

    for engine in [Engine::Loop, Engine::Auto] {
        let (here, readings) = train(&Device::flex(), engine);
        let (there, remote_readings) = train(&remote, engine);
        assert_close("mean", &means(&there), &means(&here), BACKWARD, 1e-3);
        assert_eq!(remote_readings.len(), readings.len());
        for (there, here) in remote_readings.iter().zip(&readings) {
            let trace = |reading: &Reading| reading.tasks["task"].trace.expect("a trace");
            assert_close("trace", &[trace(there)], &[trace(here)], BACKWARD, 0.0);
            let noise = |reading: &Reading| reading.noise.expect("noise").covariance_trace.value;
            assert_close("noise", &[noise(there)], &[noise(here)], BACKWARD, 0.0);
        }
        // What was captured there is saved and read here.
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("statistics.safetensors");
        there.save(&path).expect("saved");
        let loaded: Statistics = Statistics::load(&path, &Device::flex()).expect("whole");
        assert_eq!(means(&loaded), means(&there));
    }
}
