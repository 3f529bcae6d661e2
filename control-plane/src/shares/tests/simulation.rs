//! A limit over four proxies while traffic moves among them and one dies, with proxies as their documentation says:
//! token buckets filled at the rate of the share, demand as the larger mean of half a second and of one and a half,
//! reports every [`INTERVAL`]. Traffic is a fluid.

use super::*;

const STEP: Duration = Duration::from_millis(5);
const STEPS_PER_SECOND: usize = 200;
const RATE: f64 = 100.0;
const BURST: f64 = 20.0;

struct Proxy {
    alive: bool,
    /// Asked for per second.
    asked: f64,
    /// Per step, the newest last.
    asked_before: Vec<f64>,
    tokens: f64,
    share: f64,
    runs_out: Instant,
    holders: u32,
    under_way: VecDeque<(Instant, Share)>,
}

impl Proxy {
    fn new(now: Instant) -> Self {
        Self {
            alive: true,
            asked: 0.0,
            asked_before: vec![],
            tokens: BURST,
            share: 1.0,
            runs_out: now,
            holders: 1,
            under_way: VecDeque::new(),
        }
    }

    /// What it admits in this step.
    fn step(&mut self, now: Instant) -> f64 {
        while let Some((_, share)) = self.under_way.pop_front_if(|(arrives, _)| *arrives <= now) {
            self.share = f64::from(share.parts_per_million) / 1e6;
            self.holders = share.holders;
            self.runs_out = now + share.valid_for;
        }
        if self.runs_out <= now {
            self.share = 1.0 / f64::from(self.holders);
        }
        let step = STEP.as_secs_f64();
        self.asked_before.push(self.asked);
        self.tokens = (self.tokens + RATE * self.share * step).min((BURST * self.share).max(1.0));
        let admitted = if self.alive { self.tokens.min(self.asked * step) } else { 0.0 };
        self.tokens -= admitted;
        admitted
    }

    fn demand(&self) -> u64 {
        let mean = |steps: usize| self.asked_before.iter().rev().take(steps).sum::<f64>() / steps as f64;
        (mean(STEPS_PER_SECOND / 2).max(mean(STEPS_PER_SECOND * 3 / 2)) * 1000.0) as u64
    }
}

struct Mesh {
    now: Instant,
    shares: Shares<usize>,
    limit: RateLimit,
    proxies: Vec<Proxy>,
    delay: Duration,
    steps: usize,
    /// Per step, of all proxies.
    admitted: Vec<f64>,
}

impl Mesh {
    fn new(proxies: usize, delay: Duration) -> Self {
        let now = start();
        let mut mesh = Self {
            now,
            shares: Shares::new(),
            limit: limit(RATE as u64),
            proxies: (0..proxies).map(|_| Proxy::new(now)).collect(),
            delay,
            steps: 0,
            admitted: vec![],
        };
        for holder in 0..proxies {
            mesh.shares.on_join(holder, &mesh.limit);
        }
        mesh
    }

    fn ask(&mut self, asked: &[f64]) {
        for (proxy, &asked) in self.proxies.iter_mut().zip(asked) {
            proxy.asked = asked;
        }
    }

    fn kill(&mut self, holder: usize) {
        self.proxies[holder].alive = false;
        self.shares.on_lost(&holder);
    }

    fn run(&mut self, seconds: usize) {
        for _ in 0..seconds * STEPS_PER_SECOND {
            if self.steps.is_multiple_of(INTERVAL.as_millis() as usize / STEP.as_millis() as usize) {
                for (holder, proxy) in self.proxies.iter().enumerate().filter(|(_, proxy)| proxy.alive) {
                    let thousandths_per_second = proxy.demand();
                    let demand = Demand { limit: self.limit.name.clone(), thousandths_per_second };
                    self.shares.on_demand(&holder, &demand);
                }
                for (holder, share) in self.shares.divide(|_| 0, self.now) {
                    self.proxies[holder].under_way.push_back((self.now + self.delay, share));
                }
            }
            self.now += STEP;
            self.steps += 1;
            self.admitted.push(self.proxies.iter_mut().map(|proxy| proxy.step(self.now)).sum());
        }
    }

    /// Admitted per second, over the last seconds.
    fn rate(&self, seconds: usize) -> f64 {
        self.admitted.iter().rev().take(seconds * STEPS_PER_SECOND).sum::<f64>() / seconds as f64
    }

    /// The most and the least that was admitted in any second, beginning `from` seconds after the start.
    fn extremes(&self, from: usize) -> (f64, f64) {
        let seconds = self.admitted[from * STEPS_PER_SECOND..].windows(STEPS_PER_SECOND);
        seconds
            .map(|second| second.iter().sum::<f64>())
            .fold((0.0, f64::MAX), |(most, least), sum| (sum.max(most), sum.min(least)))
    }
}

fn check_rate(mesh: &mut Mesh, what: &str) {
    mesh.run(2);
    mesh.run(3);
    let rate = mesh.rate(3);
    println!("{what}: {rate:.1}/s admitted from 2 s to 5 s after the change");
    assert!((RATE * 0.9..=RATE * 1.1).contains(&rate), "{what}: {rate}");
}

/// All of it holds whatever messages take, up to [`SETTLE`].
#[test]
fn a_limit_over_four_proxies_holds_within_a_tenth_two_seconds_after_any_change() {
    for delay in [0, 20, 200].map(Duration::from_millis) {
        println!("messages take {delay:?}");
        let mut mesh = Mesh::new(4, delay);
        mesh.ask(&[300.0, 0.0, 0.0, 0.0]);
        check_rate(&mut mesh, "all on one");
        mesh.ask(&[75.0; 4]);
        check_rate(&mut mesh, "evenly");
        mesh.ask(&[0.0, 0.0, 0.0, 300.0]);
        check_rate(&mut mesh, "all on another");
        mesh.ask(&[75.0; 4]);
        check_rate(&mut mesh, "evenly again");
        mesh.kill(1);
        mesh.ask(&[100.0; 4]);
        check_rate(&mut mesh, "one has died");
        mesh.kill(0);
        mesh.ask(&[0.0, 0.0, 300.0, 0.0]);
        check_rate(&mut mesh, "another has died, all on one");
        let (most, least) = mesh.extremes(2);
        println!("in any second after the first two: {least:.1} to {most:.1}");
        assert!(most <= RATE + BURST, "{most}");
    }
}

#[test]
fn without_a_control_plane_each_goes_by_its_part() {
    let mut mesh = Mesh::new(4, Duration::from_millis(20));
    mesh.ask(&[300.0; 4]);
    mesh.run(5);
    for holder in 0..4 {
        mesh.shares.on_left(&holder, &mesh.limit.name);
    }
    mesh.run(10);
    assert!((RATE * 0.99..=RATE * 1.01).contains(&mesh.rate(5)), "{}", mesh.rate(5));
    mesh.ask(&[300.0, 0.0, 0.0, 0.0]);
    mesh.run(10);
    assert!(
        (RATE * 0.24..=RATE * 0.26).contains(&mesh.rate(5)),
        "it errs to the safe side: {}",
        mesh.rate(5)
    );
}
