use std::{pin::Pin, rc::Rc};

use futures_util::Stream as Incoming;
use outrigger_proto::{
    pb::mesh_server::{Mesh, MeshServer},
    spec::{self, Cause, Circuit, Fleet, Guidance, Share},
};
use tokio::{net::TcpListener, task};
use tokio_stream::wrappers::TcpListenerStream;
use tonic::{Request, Response, Status, Streaming, transport::Server};

use super::*;
use crate::{
    context::testing::context,
    path::rate_limit::testing::limit,
    rig::{PATIENCE, run as run_local},
    worker::Worker,
};

/// Both ends of a stream, as a control plane has them.
type Ends = (Streaming<pb::Observations>, mpsc::Sender<Result<pb::Guidance, Status>>);
type Out<T> = Pin<Box<dyn Incoming<Item = Result<T, Status>> + Send>>;

/// A control plane that hands over each stream.
struct ControlPlane(mpsc::UnboundedSender<Ends>);

#[tonic::async_trait]
impl Mesh for ControlPlane {
    type ConfigureStream = Out<pb::ConfigureResponse>;
    type ObserveStream = Out<pb::Guidance>;
    type ReportStream = Out<pb::ReportAck>;

    async fn configure(
        &self,
        _: Request<Streaming<pb::ConfigureRequest>>,
    ) -> Result<Response<Self::ConfigureStream>, Status> {
        Err(Status::unimplemented("configure"))
    }

    async fn observe(
        &self,
        request: Request<Streaming<pb::Observations>>,
    ) -> Result<Response<Self::ObserveStream>, Status> {
        let (say, said) = mpsc::channel(8);
        self.0.send((request.into_inner(), say)).unwrap();
        Ok(Response::new(Box::pin(ReceiverStream::new(said))))
    }

    async fn report(
        &self,
        _: Request<Streaming<pb::TrafficReport>>,
    ) -> Result<Response<Self::ReportStream>, Status> {
        Err(Status::unimplemented("report"))
    }
}

struct Setup {
    worker: Rc<Worker>,
    active: watch::Sender<Option<Connection>>,
    streams: mpsc::UnboundedReceiver<Ends>,
    channel: Channel,
}

async fn setup() -> Setup {
    let (streams_in, streams) = mpsc::unbounded_channel();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = format!("http://{}", listener.local_addr().unwrap());
    let server = Server::builder().add_service(MeshServer::new(ControlPlane(streams_in)));
    task::spawn_local(server.serve_with_incoming(TcpListenerStream::new(listener)));
    let made = context("");
    let worker = Worker::new(made.ctx, 0);
    let active = watch::Sender::new(None);
    task::spawn_local(run(Arc::clone(&worker.ctx), active.subscribe()));
    let channel = Channel::from_shared(address).unwrap().connect().await.unwrap();
    Setup { worker, active, streams, channel }
}

impl Setup {
    async fn stream(&mut self) -> Ends {
        timeout(PATIENCE, self.streams.recv()).await.expect("no stream is opened").unwrap()
    }
}

/// The first observation that is as wanted.
async fn hears(
    stream: &mut Streaming<pb::Observations>,
    wanted: impl Fn(&Observations) -> bool,
) -> Observations {
    let heard = async {
        loop {
            let message = stream.message().await.unwrap().expect("the stream has ended");
            let observed = convert::observations(message).unwrap();
            if wanted(&observed) {
                return observed;
            }
        }
    };
    timeout(PATIENCE, heard).await.expect("it is never said")
}

fn opened() -> Transition {
    Transition {
        backend: "shop/orders:80".parse().unwrap(),
        endpoint: "10.0.0.1:80".parse().unwrap(),
        to: Circuit::Open,
        cause: Cause::ConsecutiveFailures,
        at: 1,
        lasts: Some(Duration::from_secs(30)),
        times: 1,
        why: "5 failures in a row (limit 5)".into(),
        evidence: Vec::new(),
    }
}

#[test]
fn circuits_callees_and_demands_are_told_and_told_again_on_a_new_stream() {
    run_local(|| async {
        let mut setup = setup().await;
        let ctx = Arc::clone(&setup.worker.ctx);
        setup.active.send_replace(Some(Connection { number: 1, channel: setup.channel.clone() }));
        let (mut stream, _say) = setup.stream().await;
        ctx.events.tell(&setup.worker, opened());
        let told = hears(&mut stream, |told| !told.transitions.is_empty()).await;
        assert_eq!(told.transitions, [opened()]);
        let orders: BackendKey = "shop/orders:80".parse().unwrap();
        // Before the worker has come to say whom it calls: the control plane listens to callers only.
        assert_eq!(told.calling, std::slice::from_ref(&orders));
        let shared =
            spec::RateLimit { scope: spec::Scope::Shared, ..limit("T/shop/orders/all", 100, vec![]) };
        let _rules = ctx.limits.rules(&[shared]);
        let told = hears(&mut stream, |told| !told.demands.is_empty()).await;
        assert_eq!(&*told.demands[0].limit, "T/shop/orders/all");
        assert_eq!(told.calling, std::slice::from_ref(&orders), "complete in each message");
        // Another control plane becomes the active one.
        setup.active.send_replace(Some(Connection { number: 2, channel: setup.channel.clone() }));
        let (mut stream, _say) = setup.stream().await;
        let told = hears(&mut stream, |_| true).await;
        assert_eq!((told.transitions, told.calling), (vec![opened()], vec![orders]));
    });
}

#[test]
fn a_shared_limit_is_told_of_before_anybody_asks() {
    run_local(|| async {
        let mut setup = setup().await;
        let ctx = Arc::clone(&setup.worker.ctx);
        task::spawn_local(keep(Arc::clone(&ctx)));
        setup.active.send_replace(Some(Connection { number: 1, channel: setup.channel.clone() }));
        let (mut stream, _say) = setup.stream().await;
        let shared =
            spec::RateLimit { scope: spec::Scope::Shared, ..limit("S/shop/orders/all", 100, vec![]) };
        let own = limit("S/shop/orders/own", 100, vec![]);
        let limits = spec::PortLimits { rate_limits: vec![own, shared], ..spec::PortLimits::default() };
        let port = spec::InboundPort { limits: Some(Arc::new(limits)), ..spec::InboundPort::default() };
        let inbound =
            spec::Inbound { ports: [(8080.try_into().unwrap(), port)].into(), ..Default::default() };
        let body = spec::Body::Inbound(Arc::new(inbound));
        let resources = vec![spec::Resource { version: "1".into(), body }];
        let update = spec::Update { nonce: 1, resources, removed: Vec::new() };
        ctx.snapshot.publish(ctx.snapshot.load().apply(update).unwrap());
        let told = hears(&mut stream, |told| !told.demands.is_empty()).await;
        assert_eq!((told.demands.len(), &*told.demands[0].limit), (1, "S/shop/orders/all"));
        assert_eq!(told.demands[0].thousandths_per_second, 0);
        // It is given back when the configuration does not have it any more.
        let body = spec::Body::Inbound(Arc::new(spec::Inbound::default()));
        let resources = vec![spec::Resource { version: "2".into(), body }];
        let update = spec::Update { nonce: 2, resources, removed: Vec::new() };
        ctx.snapshot.publish(ctx.snapshot.load().apply(update).unwrap());
        ctx.limits.prune(&ctx.snapshot.load());
        hears(&mut stream, |told| told.demands.is_empty()).await;
    });
}

#[test]
fn guidance_reaches_limits_and_workers() {
    run_local(|| async {
        let mut setup = setup().await;
        let ctx = Arc::clone(&setup.worker.ctx);
        let mut heard = ctx.bulletin.listen();
        setup.active.send_replace(Some(Connection { number: 1, channel: setup.channel.clone() }));
        let (_stream, say) = setup.stream().await;
        let shared =
            spec::RateLimit { scope: spec::Scope::Shared, ..limit("T/shop/orders/all", 100, vec![]) };
        let _rules = ctx.limits.rules(&[shared]);
        let fleet = Fleet {
            backend: "shop/orders:80".parse().unwrap(),
            callers: 7,
            ejected: vec![("10.0.0.1:80".parse().unwrap(), 1)],
        };
        let share = Share {
            limit: "T/shop/orders/all".into(),
            parts_per_million: 250_000,
            holders: 4,
            valid_for: Duration::from_secs(60),
        };
        let guidance = Guidance { shares: vec![share], fleets: vec![fleet.clone()] };
        say.send(Ok(convert::guidance_to_pb(&guidance))).await.unwrap();
        let Heard::Fleet(told) = timeout(PATIENCE, heard.recv()).await.unwrap().unwrap() else {
            panic!("nothing else is told")
        };
        assert_eq!(*told, fleet);
        assert_eq!(ctx.limits.limiters()[0]["share_parts_per_million"], 250_000);
    });
}

#[test]
fn a_stream_that_ends_is_opened_again() {
    run_local(|| async {
        let mut setup = setup().await;
        setup.worker.ctx.events.tell(&setup.worker, opened());
        setup.active.send_replace(Some(Connection { number: 1, channel: setup.channel.clone() }));
        for _ in 0..2 {
            let (mut stream, say) = setup.stream().await;
            assert_eq!(hears(&mut stream, |_| true).await.transitions, [opened()]);
            // Once by an end, and by words that do not hold.
            drop(say);
        }
        let (_stream, say) = setup.stream().await;
        let share =
            pb::Share { limit: "x".to_owned(), parts_per_million: 2_000_000, holders: 1, valid_for_ms: 1 };
        say.send(Ok(pb::Guidance { shares: vec![share], fleets: vec![] })).await.unwrap();
        setup.stream().await;
    });
}
