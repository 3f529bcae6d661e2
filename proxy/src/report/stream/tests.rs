use std::pin::Pin;

use futures_util::Stream as Incoming;
use outrigger_proto::{
    convert,
    pb::mesh_server::{Mesh, MeshServer},
    spec::{ProxyEventKind, TrafficReport},
};
use tokio::{net::TcpListener, task};
use tokio_stream::wrappers::TcpListenerStream;
use tonic::{Request, Response, Streaming, transport::Server};

use super::*;
use crate::{
    context::testing::context,
    report::collect,
    rig::{PATIENCE, identity, run as run_local},
    telemetry::{ConnectionRecord, Direction, Protocol},
    worker::{Ask, Worker},
};

type Out<T> = Pin<Box<dyn Incoming<Item = Result<T, Status>> + Send>>;
/// Both ends of a stream, as a control plane has them.
type Ends = (Streaming<pb::TrafficReport>, mpsc::Sender<Result<pb::ReportAck, Status>>);

/// A control plane that hands over each stream; or, without anybody who takes it, one that knows no reports.
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
        _: Request<Streaming<pb::Observations>>,
    ) -> Result<Response<Self::ObserveStream>, Status> {
        Err(Status::unimplemented("observe"))
    }

    async fn report(
        &self,
        request: Request<Streaming<pb::TrafficReport>>,
    ) -> Result<Response<Self::ReportStream>, Status> {
        let (say, said) = mpsc::channel(8);
        let taken = self.0.send((request.into_inner(), say));
        taken.map_err(|_| Status::unimplemented("report"))?;
        Ok(Response::new(Box::pin(ReceiverStream::new(said))))
    }
}

struct Plane {
    connection: watch::Sender<Option<Connection>>,
    streams: mpsc::UnboundedReceiver<Ends>,
    channel: Channel,
}

impl Plane {
    /// The control plane with this number; the proxy is connected to it.
    async fn new(reports: &Arc<Reports>, number: usize) -> Self {
        let (streams_in, streams) = mpsc::unbounded_channel();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = format!("http://{}", listener.local_addr().unwrap());
        let server = Server::builder().add_service(MeshServer::new(ControlPlane(streams_in)));
        task::spawn_local(server.serve_with_incoming(TcpListenerStream::new(listener)));
        let channel = Channel::from_shared(address).unwrap().connect().await.unwrap();
        let connection = watch::Sender::new(None);
        task::spawn_local(run(Arc::clone(reports), number, connection.subscribe()));
        let plane = Self { connection, streams, channel };
        plane.connect(1);
        plane
    }

    fn connect(&self, number: u64) {
        let connection = Connection { number, channel: self.channel.clone() };
        self.connection.send_replace(Some(connection));
    }

    async fn stream(&mut self) -> Stream {
        let (incoming, say) =
            timeout(PATIENCE, self.streams.recv()).await.expect("no stream is opened").unwrap();
        Stream { incoming, say }
    }
}

struct Stream {
    incoming: Streaming<pb::TrafficReport>,
    say: mpsc::Sender<Result<pb::ReportAck, Status>>,
}

impl Stream {
    async fn next(&mut self) -> TrafficReport {
        let message = timeout(PATIENCE, self.incoming.message()).await.expect("no report is sent");
        convert::report(message.unwrap().expect("the stream has ended")).unwrap()
    }

    async fn acknowledge(&self, sequence: u64) {
        self.say.send(Ok(pb::ReportAck { sequence, refused: Vec::new() })).await.unwrap();
    }

    async fn refuse(&self, sequence: u64, refused: u64) {
        let refused = vec![pb::RefusedReport { sequence: refused, why: "epoch: is 0".to_owned() }];
        self.say.send(Ok(pb::ReportAck { sequence, refused })).await.unwrap();
    }

    /// Until nothing more is sent.
    async fn numbers(&mut self) -> Vec<u64> {
        let mut numbers = Vec::new();
        while let Ok(message) = timeout(Duration::from_millis(200), self.incoming.message()).await {
            numbers.push(message.unwrap().expect("the stream has ended").sequence);
        }
        numbers
    }
}

/// A report with one event.
fn happens(reports: &Reports, what: &str) {
    reports.event(ProxyEventKind::Draining, what);
    reports.close(Vec::new(), crate::worker::now());
}

async fn until(what: &str, condition: impl Fn() -> bool) {
    let waiting = async {
        while !condition() {
            sleep(Duration::from_millis(5)).await;
        }
    };
    timeout(PATIENCE, waiting).await.unwrap_or_else(|_| panic!("never: {what}"));
}

#[test]
fn each_control_plane_gets_each_report() {
    run_local(|| async {
        let reports = Reports::new();
        let (mut first, mut second) = (Plane::new(&reports, 0).await, Plane::new(&reports, 1).await);
        let (mut one, mut other) = (first.stream().await, second.stream().await);
        until("both are connected", || reports.state().ring.connected() == 2).await;
        happens(&reports, "a");
        let told = one.next().await;
        assert_eq!((told.sequence, &*told.events[0].message), (1, "a"));
        assert_eq!(other.next().await.epoch, told.epoch);
        one.acknowledge(1).await;
        happens(&reports, "b");
        assert_eq!((one.next().await.sequence, other.next().await.sequence), (2, 2));
        one.acknowledge(2).await;
        assert_eq!(reports.standing().waiting, 2, "the other one may still need it");
        other.acknowledge(2).await;
        until("it is released", || reports.standing().waiting == 0).await;
        assert_eq!(reports.standing().acknowledged, 2);
        // The end waits for nobody who has everything, and for those who lack something only so long.
        reports.flush(Duration::from_secs(60)).await;
        happens(&reports, "c");
        let began = Instant::now();
        reports.flush(Duration::from_millis(100)).await;
        assert!(began.elapsed() >= Duration::from_millis(100));
    });
}

#[test]
fn what_was_not_acknowledged_is_told_again() {
    run_local(|| async {
        let reports = Reports::new();
        happens(&reports, "before anybody was there");
        let mut plane = Plane::new(&reports, 0).await;
        let mut stream = plane.stream().await;
        assert_eq!(stream.next().await.sequence, 1);
        happens(&reports, "b");
        assert_eq!(stream.next().await.sequence, 2);
        stream.acknowledge(1).await;
        until("it is released", || reports.standing().waiting == 1).await;
        drop(stream);
        let mut stream = plane.stream().await;
        assert_eq!(stream.next().await.sequence, 2);
        // Another connection, before this one was lost.
        plane.connect(2);
        let mut stream = plane.stream().await;
        assert_eq!(stream.next().await.sequence, 2);
        // It is not believed about what it was not sent.
        stream.acknowledge(1_000).await;
        until("it is released", || reports.standing().waiting == 0).await;
        happens(&reports, "c");
        assert_eq!(stream.next().await.sequence, 3);
        assert_eq!(reports.standing().waiting, 1);
    });
}

#[test]
fn only_so_many_are_on_their_way() {
    run_local(|| async {
        let reports = Reports::new();
        (0..50).for_each(|_| happens(&reports, "a"));
        let mut plane = Plane::new(&reports, 0).await;
        let mut stream = plane.stream().await;
        assert_eq!(stream.numbers().await, (1..=UNACKNOWLEDGED as u64).collect::<Vec<_>>());
        stream.acknowledge(3).await;
        assert_eq!(stream.numbers().await, [17, 18, 19]);
    });
}

#[test]
fn a_report_that_is_refused_costs_neither_the_stream_nor_another() {
    run_local(|| async {
        let reports = Reports::new();
        (0..5).for_each(|_| happens(&reports, "a"));
        let mut plane = Plane::new(&reports, 0).await;
        let mut other = Plane::new(&reports, 1).await;
        let mut stream = plane.stream().await;
        let mut behind = other.stream().await;
        assert_eq!(stream.numbers().await, [1, 2, 3, 4, 5]);
        // Not what it was not sent, nor what is beyond what it acknowledges.
        stream.refuse(1, 5).await;
        stream.refuse(3, 3).await;
        stream.refuse(4, 77).await;
        stream.acknowledge(5).await;
        happens(&reports, "b");
        assert_eq!(stream.next().await.sequence, 6, "on the same stream");
        assert_eq!((reports.standing().refused, reports.standing().waiting), (1, 6));
        // It is kept for the other one, and not sent here again.
        drop(stream);
        assert_eq!(plane.stream().await.numbers().await, [1, 2, 4, 5, 6]);
        assert_eq!(behind.numbers().await, [1, 2, 3, 4, 5, 6]);
    });
}

#[test]
fn a_report_that_cannot_be_read_stops_no_other() {
    run_local(|| async {
        let reports = Reports::new();
        (0..5).for_each(|_| happens(&reports, "a"));
        let mut plane = Plane::new(&reports, 0).await;
        let mut counted = Vec::new();
        while reports.standing().waiting > 0 {
            let mut stream = plane.stream().await;
            loop {
                let report = tokio::select! {
                    report = stream.next() => report,
                    () = until("all are acknowledged", || reports.standing().waiting == 0) => break,
                };
                if report.sequence == 3 {
                    stream.say.send(Err(Status::invalid_argument("not three"))).await.unwrap();
                    break;
                }
                // Whoever is told twice knows it by the number.
                if !counted.contains(&report.sequence) {
                    counted.push(report.sequence);
                }
                stream.acknowledge(report.sequence).await;
            }
        }
        assert_eq!(counted, [1, 2, 4, 5]);
        assert_eq!(reports.standing().refused, 1);
    });
}

#[test]
fn a_control_plane_without_reports_is_not_asked_again_soon() {
    run_local(|| async {
        let reports = Reports::new();
        let mut plane = Plane::new(&reports, 0).await;
        let mut other = Plane::new(&reports, 1).await;
        let mut stream = other.stream().await;
        // From its next stream on it does not know what a report is.
        drop(plane.stream().await);
        plane.streams.close();
        until("it is given up", || reports.state().ring.connected() == 1).await;
        sleep(Duration::from_secs(2)).await;
        happens(&reports, "a");
        assert_eq!(stream.next().await.sequence, 1);
        stream.acknowledge(1).await;
        until("nobody waits for it", || reports.standing().waiting == 0).await;
    });
}

#[test]
fn what_a_worker_counts_is_reported() {
    run_local(|| async {
        let made = context("");
        let worker = Worker::new(made.ctx, 0);
        let ctx = Arc::clone(&worker.ctx);
        let (ask, mut asks) = mpsc::channel(8);
        let answering = std::rc::Rc::clone(&worker);
        task::spawn_local(async move {
            while let Some(Ask::Report(give)) = asks.recv().await {
                answering.telemetry.report(0, &give);
            }
        });
        let mut plane = Plane::new(&ctx.telemetry.reports, 0).await;
        task::spawn_local(collect::run(Arc::clone(&ctx), vec![ask]));
        let mut stream = plane.stream().await;
        let peer = identity("orders");
        let connection = ConnectionRecord {
            direction: Direction::Outbound,
            protocol: Protocol::Tcp,
            reason: None,
            detail: "",
            peer: Some(&peer),
            caller: ([127, 0, 0, 1], 1).into(),
            service: "shop/orders:80",
            authority: "",
            endpoint: None,
            received: 3,
            sent: 4,
            connected: Duration::ZERO,
            duration: Duration::from_secs(1),
            attempts: 1,
            security: "TLSv1_3 A B",
            trace: None,
            id: 1,
        };
        for sequence in 1..=2 {
            worker.telemetry.connection(&connection);
            let report = stream.next().await;
            stream.acknowledge(sequence).await;
            let [edge] = &report.edges[..] else { panic!("{report:?}") };
            assert_eq!((report.sequence, &*edge.key.service), (sequence, "shop/orders:80"));
            assert_eq!(
                (&edge.key.peer, edge.security.as_deref()),
                (&Some(peer.clone()), Some("TLSv1_3 A B"))
            );
            assert_eq!((edge.connections, edge.received, edge.sent), (1, 3, 4));
            assert!(report.length <= Duration::from_secs(5), "{:?}", report.length);
        }
        // Nothing happens, nothing is told.
        sleep(Duration::from_secs(2)).await;
        assert_eq!(stream.numbers().await, [] as [u64; 0]);
    });
}
