//! Every protocol through two sidecars, spoken by real programs.

use std::{
    fs,
    io::{Read, Write},
    net::{Shutdown, SocketAddr, TcpListener, TcpStream},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use outrigger_lab::{Pod, wait_for};

use crate::support::{
    Need, SOON, Test, bind_again,
    load::{Kind, Plan},
    peers, raw,
    shop::Shop,
};

const CURL: Need = Need::Program("curl");
const NGINX: Need = Need::Program("nginx");

pub(crate) fn tests() -> Vec<Test> {
    let curl_and_nginx: &'static [Need] = &[CURL, NGINX, Need::Program("openssl")];
    vec![
        Test::in_shop("http1_keep_alive_serves_many_requests_on_one_connection", keep_alive).needs(&[CURL]),
        Test::in_shop("http1_chunked_bodies_pass_both_ways", chunked).needs(&[CURL]),
        Test::in_shop("http1_trailers_reach_the_other_side", trailers),
        Test::in_shop("http1_expect_100_continue_is_answered_before_the_body_is_sent", expect_continue),
        Test::in_shop("http1_head_keeps_the_length_and_has_no_body", head).needs(curl_and_nginx),
        Test::in_shop("http1_caller_that_half_closes_still_gets_its_answer", half_closing_caller),
        Test::in_shop("http1_on_an_undeclared_port_is_detected", undeclared_http),
        Test::in_shop("websocket_messages_of_all_sizes_ping_and_close_code_pass", websocket)
            .needs(&[Need::Python]),
        Test::in_shop("http2_with_prior_knowledge_stays_http2", http2).needs(curl_and_nginx),
        Test::in_shop("h2load_and_wrk_see_no_failed_request", load_tools).needs(&[
            NGINX,
            Need::Program("openssl"),
            Need::Program("h2load"),
            Need::Program("wrk"),
        ]),
        Test::in_shop("grpc_all_four_kinds_of_calls_keep_status_metadata_and_trailers", grpc)
            .needs(&[Need::Python]),
        Test::in_shop("tcp_half_close_by_the_caller_lets_the_answer_through", tcp_caller_closes_first),
        Test::in_shop("tcp_half_close_by_the_server_lets_the_caller_finish", tcp_server_closes_first),
        Test::in_shop("tls_of_the_application_passes_through_with_its_own_certificate", tls_passthrough)
            .needs(curl_and_nginx),
        Test::in_shop("redis_answers_through_an_undeclared_port", redis)
            .needs(&[Need::Program("redis-server"), Need::Program("redis-cli")]),
        Test::in_shop("mariadb_speaks_first_through_an_undeclared_port_without_a_stall", mariadb)
            .needs(&[Need::Program("mariadbd"), Need::Program("mariadb")]),
        Test::in_shop("large_bodies_keep_their_checksums_both_ways", large_bodies).needs(curl_and_nginx),
        Test::in_shop("a_thousand_short_connections_all_get_their_answer", short_connections),
    ]
}

fn keep_alive(shop: &Shop) -> Result<()> {
    let before = shop.origin.requests();
    let url = "http://10.96.0.10/id";
    let format = "%{num_connects} %{http_version} %{http_code} ";
    let told = shop.curl(&["-w", format, url, url, url, url, url])?;
    ensure!(told == "store1 1.1 200 store0 1.1 200 store0 1.1 200 store0 1.1 200 store0 1.1 200 ", "{told}");
    ensure!(shop.origin.requests() >= before + 5);
    Ok(())
}

fn chunked(shop: &Shop) -> Result<()> {
    let file = shop.lab().directory().join("chunked");
    let text = "chunks ".repeat(50_000);
    fs::write(&file, &text)?;
    let upload = format!("@{}", file.display());
    let told = shop.curl(&[
        "-i",
        "-H",
        "transfer-encoding: chunked",
        "--data-binary",
        &upload,
        "http://10.96.0.10/echo",
    ])?;
    let (head, body) = told.rsplit_once("\r\n\r\n").context("no head")?;
    ensure!(head.to_lowercase().contains("transfer-encoding: chunked"), "{head}");
    ensure!(body == text, "{} bytes came back of {}", body.len(), text.len());
    Ok(())
}

fn trailers(shop: &Shop) -> Result<()> {
    let request = "POST /echo HTTP/1.1\r\nhost: store.shop\r\nte: trailers\r\nconnection: te, close\r\n\
                   trailer: x-checksum\r\ntransfer-encoding: chunked\r\n\r\n\
                   5\r\nhello\r\n0\r\nx-checksum: 4711\r\n\r\n";
    let answer = raw::exchange(&shop.web.pod, shop.store(80), request.as_bytes())?.to_lowercase();
    ensure!(answer.starts_with("http/1.1 200"), "{answer}");
    ensure!(answer.contains("hello"), "{answer}");
    ensure!(answer.trim_end().ends_with("x-checksum: 4711"), "{answer}");
    Ok(())
}

fn expect_continue(shop: &Shop) -> Result<()> {
    let mut stream = raw::connect(&shop.web.pod, shop.store(80))?;
    stream.write_all(
        b"POST /id HTTP/1.1\r\nhost: store.shop\r\nexpect: 100-continue\r\ncontent-length: 5\r\n\r\n",
    )?;
    let (head, _) = raw::read_answer(&mut stream).context("waiting to be told to go on")?;
    ensure!(head.starts_with("http/1.1 100"), "{head}");
    stream.write_all(b"hello")?;
    let (head, _) = raw::read_answer(&mut stream)?;
    ensure!(head.starts_with("http/1.1 200"), "{head}");
    Ok(())
}

fn head(shop: &Shop) -> Result<()> {
    fs::write(peers::nginx_root(shop.lab(), &shop.store.pod).join("head"), vec![b'x'; 12_345])?;
    let mut stream = raw::connect(&shop.web.pod, shop.store(81))?;
    for _ in 0..2 {
        stream.write_all(b"HEAD /head HTTP/1.1\r\nhost: store.shop\r\n\r\n")?;
        let mut answer = Vec::new();
        let mut byte = [0];
        while !answer.ends_with(b"\r\n\r\n") {
            stream.read_exact(&mut byte)?;
            answer.push(byte[0]);
        }
        let answer = String::from_utf8_lossy(&answer).to_lowercase();
        // The second round shows that no body came after the first head.
        ensure!(answer.starts_with("http/1.1 200") && answer.contains("content-length: 12345"), "{answer}");
    }
    Ok(())
}

fn half_closing_caller(shop: &Shop) -> Result<()> {
    let mut stream = raw::connect(&shop.web.pod, shop.store(80))?;
    stream.write_all(b"GET /slow/200 HTTP/1.1\r\nhost: store.shop\r\n\r\n")?;
    stream.shutdown(Shutdown::Write)?;
    let answer = raw::read_to_end(&mut stream)?;
    ensure!(answer.starts_with("HTTP/1.1 200") && answer.ends_with("store"), "{answer}");
    Ok(())
}

fn undeclared_http(shop: &Shop) -> Result<()> {
    let request = b"GET /headers HTTP/1.1\r\nhost: store.shop\r\nconnection: close\r\n\r\n";
    let answer = raw::exchange(&shop.web.pod, shop.store(88), request)?.to_lowercase();
    // Only a proxy that understood HTTP can say who calls.
    ensure!(answer.contains("x-forwarded-client-cert: by=spiffe://mesh.local/ns/shop/sa/store"), "{answer}");
    ensure!(answer.contains("uri=spiffe://mesh.local/ns/shop/sa/web"), "{answer}");
    Ok(())
}

fn websocket(shop: &Shop) -> Result<()> {
    let pod = &shop.web.pod;
    let told = pod.run(peers::script(pod, "websocket_peer.py").args(["check", "ws://10.96.0.10:84/chat"]))?;
    let told = told.success()?;
    ensure!(told.trim() == "ok close 4001", "{told}");
    Ok(())
}

fn http2(shop: &Shop) -> Result<()> {
    let told =
        shop.curl(&["--http2-prior-knowledge", "-w", "%{http_version}", "http://10.96.0.10:82/nginx"])?;
    ensure!(told == "nginx HTTP/2.0\n2", "{told}");
    // The declared "http" port takes both versions, and keeps them.
    let told = shop.curl(&["--http2-prior-knowledge", "-w", " %{http_version}", "http://10.96.0.10/id"])?;
    ensure!(told == "store 2", "{told}");
    Ok(())
}

fn load_tools(shop: &Shop) -> Result<()> {
    let pod = &shop.web.pod;
    fs::write(peers::nginx_root(shop.lab(), &shop.store.pod).join("1k"), vec![b'x'; 1024])?;
    let h2load =
        pod.run(pod.command("h2load").args(["-n", "2000", "-c", "8", "-m", "8", "http://10.96.0.10:82/1k"]))?;
    let told = h2load.success()?;
    let all_good = "2000 total, 2000 started, 2000 done, 2000 succeeded, 0 failed, 0 errored, 0 timeout";
    ensure!(told.contains(all_good), "{told}");
    let wrk =
        pod.run(pod.command("wrk").args(["-t", "1", "-c", "16", "-d", "2s", "http://10.96.0.10:81/1k"]))?;
    let told = wrk.success()?;
    ensure!(!told.contains("Non-2xx") && !told.contains("Socket errors"), "{told}");
    Ok(())
}

fn grpc(shop: &Shop) -> Result<()> {
    let pod = &shop.web.pod;
    let told = pod.run(peers::script(pod, "grpc_peer.py").args(["check", "10.96.0.10:85"]))?.success()?;
    let wanted = ["ok unary", "ok status", "ok server-stream", "ok client-stream", "ok bidi"];
    for line in wanted {
        ensure!(told.lines().any(|told| told == line), "no {line:?}: {told}");
    }
    ensure!(told.contains("URI=spiffe://mesh.local/ns/shop/sa/web"), "{told}");
    Ok(())
}

/// Runs `serve` with the first connection to port 8086 of the store.
fn tcp_server<T: Send + 'static>(
    pod: &Pod,
    serve: impl FnOnce(TcpStream) -> Result<T> + Send + 'static,
) -> Result<std::thread::JoinHandle<Result<T>>> {
    let address = SocketAddr::from(([0, 0, 0, 0], 8086));
    let listener = bind_again(|| Ok(pod.enter(|| TcpListener::bind(address))??))?;
    Ok(std::thread::spawn(move || {
        let (stream, _) = listener.accept()?;
        stream.set_read_timeout(Some(raw::PATIENCE))?;
        serve(stream)
    }))
}

/// Both half-close tests use the one port.
static TCP_PORT: std::sync::Mutex<()> = std::sync::Mutex::new(());

fn tcp_caller_closes_first(shop: &Shop) -> Result<()> {
    let _one_at_a_time = TCP_PORT.lock();
    let server = tcp_server(&shop.store.pod, |mut stream| {
        let mut question = String::new();
        stream.read_to_string(&mut question)?;
        // Said only after the end of the question was seen.
        stream.write_all(format!("you said {question}").repeat(1000).as_bytes())?;
        Ok(())
    })?;
    let mut caller = raw::connect(&shop.web.pod, shop.store(86))?;
    caller.write_all(b"\x00\xffquestion")?;
    caller.write_all(b" and more")?;
    let _ = caller.shutdown(Shutdown::Write);
    let mut answer = Vec::new();
    let read = caller.read_to_end(&mut answer);
    // Not UTF-8, so the server says so and the caller must see the connection end, not hang.
    let served = server.join().expect("server");
    ensure!(served.is_err() && read.is_ok_and(|length| length == 0), "{answer:?}");

    let server = tcp_server(&shop.store.pod, |mut stream| {
        let mut question = String::new();
        stream.read_to_string(&mut question)?;
        stream.write_all(question.to_uppercase().repeat(10_000).as_bytes())?;
        Ok(())
    })?;
    let mut caller = raw::connect(&shop.web.pod, shop.store(86))?;
    caller.write_all(b"quest")?;
    caller.write_all(b"ion ")?;
    caller.shutdown(Shutdown::Write)?;
    let answer = raw::read_to_end(&mut caller)?;
    server.join().expect("server")?;
    ensure!(answer == "QUESTION ".repeat(10_000), "{} bytes", answer.len());
    Ok(())
}

fn tcp_server_closes_first(shop: &Shop) -> Result<()> {
    let _one_at_a_time = TCP_PORT.lock();
    let server = tcp_server(&shop.store.pod, |mut stream| {
        stream.write_all(b"tell me all")?;
        stream.shutdown(Shutdown::Write)?;
        let mut told = String::new();
        stream.read_to_string(&mut told)?;
        Ok(told)
    })?;
    let mut caller = raw::connect(&shop.web.pod, shop.store(86))?;
    let mut greeting = String::new();
    caller.read_to_string(&mut greeting)?;
    ensure!(greeting == "tell me all", "{greeting:?}");
    // The end of the server's half was seen; the caller's half is still open.
    for _ in 0..100 {
        caller.write_all(&[b'x'; 1000])?;
    }
    drop(caller);
    let told = server.join().expect("server")?;
    ensure!(told.len() == 100_000, "the server got {} bytes", told.len());
    Ok(())
}

fn tls_passthrough(shop: &Shop) -> Result<()> {
    let certificate = shop.lab().directory().join("own.crt").display().to_string();
    let told = shop.curl(&[
        "--cacert",
        &certificate,
        "--resolve",
        "own.example:83:10.96.0.10",
        "-w",
        "%{ssl_verify_result}",
        "https://own.example:83/",
    ])?;
    ensure!(told == "own tls own.example\n0", "{told}");
    Ok(())
}

fn redis(shop: &Shop) -> Result<()> {
    let pod = &shop.web.pod;
    let ask = |arguments: &[&str]| -> Result<String> {
        pod.run(pod.command("redis-cli").args(["-h", "10.96.0.10"]).args(arguments))?.success()
    };
    ensure!(ask(&["PING"])?.trim() == "PONG");
    ensure!(ask(&["SET", "key", "value with spaces"])?.trim() == "OK");
    ensure!(ask(&["GET", "key"])?.trim() == "value with spaces");
    // 1,000 commands on one connection.
    ensure!(ask(&["-r", "1000", "INCR", "counter"])?.lines().last() == Some("1000"));
    Ok(())
}

fn mariadb(shop: &Shop) -> Result<()> {
    let pod = &shop.web.pod;
    let ask = |arguments: &[&str]| -> Result<String> {
        let mut mariadb = pod.command("mariadb");
        mariadb.args(["--no-defaults", "-h", "10.96.0.10", "--batch", "--skip-column-names"]);
        pod.run(mariadb.args(arguments))?.success()
    };
    let large = "select length(repeat('x', 3000000)), 1 + 41";
    ensure!(ask(&["-P", "3306", "-e", large])?.trim() == "3000000\t42");
    ensure!(ask(&["-P", "3307", "-e", large])?.trim() == "3000000\t42");

    // Tried again where it took long, because others use the machine too: a stall would be in every try.
    let first_byte = |from: &Pod, target: SocketAddr| -> Result<Duration> {
        let start = Instant::now();
        let mut stream = raw::connect(from, target)?;
        let mut greeting = [0; 5];
        stream.read_exact(&mut greeting).context("greeting")?;
        Ok(start.elapsed())
    };
    let direct = first_byte(&shop.store.pod, SocketAddr::from(([127, 0, 0, 1], 3306)))?;
    let mut tries = Vec::new();
    wait_for(SOON, "a first byte within 100 ms more than directly", || {
        let meshed = first_byte(pod, shop.store(3306));
        let good = meshed.as_ref().is_ok_and(|meshed| *meshed < direct + Duration::from_millis(100));
        tries.push(meshed);
        good || tries.len() == 20
    })?;
    ensure!(tries.len() < 20, "directly after {direct:?}, through the mesh after {tries:?}");
    Ok(())
}

fn large_bodies(shop: &Shop) -> Result<()> {
    const MIB: usize = 1024 * 1024;
    let pod = &shop.web.pod;
    let file = peers::nginx_root(shop.lab(), &shop.store.pod).join("large");
    // Bytes without a short period, so that a lost or doubled piece changes the sum.
    let bytes: Vec<u8> =
        (0..32 * MIB as u64).map(|n| (n.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 56) as u8).collect();
    fs::write(&file, &bytes)?;
    // With what went wrong in the pipe, which its status does not tell.
    let sum = |command: &str| -> Result<String> {
        let output = pod.run(pod.command("sh").args(["-ec", command]))?;
        let said = output.stderr.trim().to_owned();
        Ok(format!("{}{said}", output.success()?.split(' ').next().unwrap_or_default()))
    };
    let wanted = sum(&format!("sha256sum <{}", file.display()))?;
    for flags in ["", "--http2-prior-knowledge"] {
        let port = if flags.is_empty() { 81 } else { 82 };
        let curl = format!("curl -sS --fail --noproxy '*' --max-time 50 {flags}");
        let down = sum(&format!("{curl} http://10.96.0.10:{port}/large | sha256sum"))?;
        ensure!(down == wanted, "download {flags}: {down} instead of {wanted}");
        // Up and, at the same time, down again.
        let both =
            sum(&format!("{curl} -T {} -H Expect: http://10.96.0.10/echo | sha256sum", file.display()))?;
        ensure!(both == wanted, "echo {flags}: {both} instead of {wanted}");
    }
    fs::remove_file(file)?;
    Ok(())
}

fn short_connections(shop: &Shop) -> Result<()> {
    let pod = &shop.web.pod;
    let target = shop.store(80);
    let request = b"GET /id HTTP/1.1\r\nhost: store.shop\r\nconnection: close\r\n\r\n";
    std::thread::scope(|scope| {
        let mut workers = Vec::new();
        for _ in 0..8 {
            workers.push(scope.spawn(move || -> Result<()> {
                for number in 0..125 {
                    let answer = raw::exchange(pod, target, request)?;
                    let good = answer.starts_with("HTTP/1.1 200") && answer.ends_with("store");
                    ensure!(good, "connection {number}: {answer:?}");
                }
                Ok(())
            }));
        }
        workers.into_iter().try_for_each(|worker| worker.join().expect("worker"))
    })?;
    // And as many through a load that keeps its connections: both kinds side by side.
    let load = Plan::new(Kind::Http1, target, "store.shop").start(pod)?;
    load.wait_for_more(500, SOON)?;
    load.stop()?.expect_none_failed(500)
}
