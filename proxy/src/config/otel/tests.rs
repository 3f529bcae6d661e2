use super::*;
use crate::config::cli::{Instead, Wanted, read};

const ENDPOINT: (&str, &str) = ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://collector:4317");

/// What these variables and flags come to, or everything that is wrong with them.
fn parse(variables: &[(&str, &str)], more: &str) -> Result<Otel, String> {
    let line = format!("outrigger-proxy run --control-plane cp:15012 --token-file /token {more}");
    let arguments = line.split_ascii_whitespace().map(Into::into).collect();
    let variables = variables.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
    match read(arguments, variables, 1) {
        Ok(Wanted::Run(config)) => Ok(config.otel),
        Err(Instead::Wrong(text)) => Err(text),
        other => panic!("{other:?}"),
    }
}

fn traces(variables: &[(&str, &str)]) -> Traces {
    parse(variables, "").unwrap().traces.expect("an endpoint is configured")
}

fn with<'a>(more: &[(&'a str, &'a str)]) -> Vec<(&'a str, &'a str)> {
    [&[ENDPOINT], more].concat()
}

#[test]
fn without_an_endpoint_nothing_is_sent() {
    for variables in [
        &[][..],
        &[("OTEL_EXPORTER_OTLP_ENDPOINT", "")],
        &[("OTEL_TRACES_SAMPLER", "always_on")],
        &[ENDPOINT, ("OTEL_SDK_DISABLED", "TRUE")],
        &[ENDPOINT, ("OTEL_TRACES_EXPORTER", "none"), ("OTEL_METRICS_EXPORTER", "prometheus")],
    ] {
        let otel = parse(variables, "").unwrap();
        assert!(otel.traces.is_none() && otel.metrics.is_none(), "{variables:?}: {otel:?}");
    }
    let otel = parse(&[("OTEL_EXPORTER_OTLP_METRICS_ENDPOINT", "http://a:1")], "").unwrap();
    assert!(otel.traces.is_none() && otel.metrics.is_some());
}

#[test]
fn defaults() {
    let traces = traces(&[ENDPOINT]);
    let Traces { export, policy, keep, max_per_second, propagators, .. } = &traces;
    assert_eq!((export.protocol, export.gzip, export.timeout), (Protocol::Grpc, false, DEFAULT_TIMEOUT));
    assert_eq!(export.endpoint.to_string(), "http://collector:4317/");
    assert_eq!(policy.to_string(), "parentbased_traceidratio 0.01");
    assert_eq!(
        (*keep, max_per_second.get(), propagators.to_string()),
        (Keep::default(), 100, "tracecontext".into())
    );
    assert_eq!((traces.delay, traces.patience), (Duration::from_secs(5), Duration::from_secs(30)));
    assert_eq!((traces.queue, traces.batch, traces.tcp, traces.trust_outside), (2_048, 512, false, false));
    let metrics = parse(&[ENDPOINT], "").unwrap().metrics.unwrap();
    assert_eq!(metrics.every, Duration::from_secs(60));
}

#[test]
fn every_value_is_read() {
    let variables = with(&[
        ("OTEL_TRACES_SAMPLER", "traceidratio"),
        ("OTEL_TRACES_SAMPLER_ARG", "0.25"),
        ("OTEL_PROPAGATORS", "b3multi,baggage,tracecontext"),
        ("OTEL_BSP_SCHEDULE_DELAY", "200"),
        ("OTEL_BSP_MAX_QUEUE_SIZE", "100"),
        ("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", "10"),
        ("OTEL_BSP_EXPORT_TIMEOUT", "1500"),
        ("OTEL_METRIC_EXPORT_INTERVAL", "5000"),
        ("OTEL_RESOURCE_ATTRIBUTES", "service.name=other, deployment.environment.name=a%2Cb,empty="),
        ("OTEL_SERVICE_NAME", "web"),
        ("OTEL_EXPORTER_OTLP_HEADERS", "authorization=Bearer%20s3cret,X-Tenant=7"),
        ("OTEL_EXPORTER_OTLP_COMPRESSION", "gzip"),
        ("OTEL_EXPORTER_OTLP_CERTIFICATE", "/ca.pem"),
        ("OTEL_EXPORTER_OTLP_CLIENT_CERTIFICATE", "/own.pem"),
        ("OTEL_EXPORTER_OTLP_CLIENT_KEY", "/own.key"),
        ("OUTRIGGER_TRACE_TCP", "true"),
        // Of the application's SDK.
        ("OTEL_LOGS_EXPORTER", "console"),
        ("OTEL_ATTRIBUTE_COUNT_LIMIT", "x"),
    ]);
    let flags = "--trace-keep errors,slower=500ms --trace-max-per-second 7 --trace-trust-outside";
    let otel = parse(&variables, flags).unwrap();
    let traces = otel.traces.clone().unwrap();
    assert_eq!(traces.policy.to_string(), "traceidratio 0.25");
    assert_eq!(traces.propagators.to_string(), "b3multi,tracecontext");
    assert_eq!(traces.keep, Keep { errors: true, slower: Some(Duration::from_millis(500)) });
    assert_eq!((traces.max_per_second.get(), traces.tcp, traces.trust_outside), (7, true, true));
    assert_eq!((traces.delay.as_millis(), traces.queue, traces.batch), (200, 100, 10));
    assert_eq!(traces.patience.as_millis(), 1_500);
    assert_eq!(otel.metrics.as_ref().unwrap().every.as_secs(), 5);
    let resource: Vec<_> = otel.resource.iter().map(|(name, value)| format!("{name}={value}")).collect();
    assert_eq!(resource, ["deployment.environment.name=a,b", "empty=", "service.name=web"]);
    let export = &traces.export;
    let headers: Vec<_> = export.headers.0.iter().map(|(n, v)| (n.as_str(), v.to_str().unwrap())).collect();
    assert_eq!(headers, [("authorization", "Bearer s3cret"), ("x-tenant", "7")]);
    assert!(export.gzip);
    assert_eq!(export.client, Some(("/own.pem".into(), "/own.key".into())));
    for shown in [format!("{otel:?}"), otel.describe().to_string()] {
        assert!(shown.contains("authorization") && !shown.contains("s3cret"), "{shown}");
    }
}

#[test]
fn a_variable_of_one_signal_wins() {
    let otel = parse(
        &with(&[
            ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "https://traces.example/in?key=s3cret"),
            ("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc"),
            ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "http/protobuf"),
            ("OTEL_EXPORTER_OTLP_TIMEOUT", "1000"),
            ("OTEL_EXPORTER_OTLP_METRICS_TIMEOUT", "2000"),
            ("OTEL_EXPORTER_OTLP_HEADERS", "a=1,b=2"),
            ("OTEL_EXPORTER_OTLP_TRACES_HEADERS", "c=3"),
            ("OTEL_EXPORTER_OTLP_TRACES_COMPRESSION", "none"),
            ("OTEL_EXPORTER_OTLP_COMPRESSION", "gzip"),
        ]),
        "",
    )
    .unwrap();
    let (traces, metrics) = (otel.traces.clone().unwrap().export, otel.metrics.clone().unwrap().export);
    assert_eq!((traces.protocol, metrics.protocol), (Protocol::Http, Protocol::Grpc));
    assert_eq!((traces.timeout.as_secs(), metrics.timeout.as_secs()), (1, 2));
    assert_eq!((traces.headers.0.len(), metrics.headers.0.len()), (1, 2));
    assert_eq!((traces.gzip, metrics.gzip), (false, true));
    assert_eq!(traces.endpoint.path, "/in?key=s3cret");
    assert_eq!((traces.endpoint.tls, traces.endpoint.at.to_string()), (true, "traces.example:443".into()));
    assert_eq!(metrics.endpoint.at.to_string(), "collector:4317");
    for shown in [format!("{otel:?}"), otel.describe().to_string()] {
        assert!(!shown.contains("s3cret"), "{shown}");
    }
}

#[test]
fn paths_of_endpoints() {
    let base = "OTEL_EXPORTER_OTLP_ENDPOINT";
    let own = "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT";
    for (variable, protocol, text, want) in [
        (base, "http/protobuf", "http://a:4318", "http://a:4318/v1/traces"),
        (base, "http/protobuf", "http://a:4318/", "http://a:4318/v1/traces"),
        (base, "http/protobuf", "https://a/otlp/", "https://a:443/otlp/v1/traces"),
        (own, "http/protobuf", "http://a", "http://a:80/"),
        (own, "http/protobuf", "http://a/x", "http://a:80/x"),
        (own, "http/protobuf", "http://a/x/", "http://a:80/x/"),
        (base, "grpc", "https://[fd00::1]:4317", "https://[fd00::1]:4317/"),
        (base, "grpc", "a:4317", "https://a:4317/"),
        (own, "grpc", "[::1]:4317", "https://[::1]:4317/"),
    ] {
        let traces = traces(&[(variable, text), ("OTEL_EXPORTER_OTLP_PROTOCOL", protocol)]);
        assert_eq!(traces.export.endpoint.to_string(), want, "{text}");
    }
    let plain = traces(&[(base, "a:4317"), ("OTEL_EXPORTER_OTLP_INSECURE", "true")]);
    assert_eq!(plain.export.endpoint.to_string(), "http://a:4317/");
    let explicit = traces(&[(base, "https://a:4317"), ("OTEL_EXPORTER_OTLP_INSECURE", "true")]);
    assert!(explicit.export.endpoint.tls, "the scheme wins");
}

#[test]
fn what_cannot_be_is_an_error_that_names_the_variable() {
    let http = ("OTEL_EXPORTER_OTLP_PROTOCOL", "http/protobuf");
    for (variables, problem) in [
        (vec![("OTEL_EXPORTER_OTLP_ENDPOINT", "ftp://a")], "OTEL_EXPORTER_OTLP_ENDPOINT: want http://HOST"),
        (vec![("OTEL_EXPORTER_OTLP_ENDPOINT", "http://")], "OTEL_EXPORTER_OTLP_ENDPOINT: want"),
        (vec![("OTEL_EXPORTER_OTLP_ENDPOINT", "http://a:0")], "want a port"),
        (vec![("OTEL_EXPORTER_OTLP_ENDPOINT", "http://a:99999")], "OTEL_EXPORTER_OTLP_ENDPOINT: want"),
        (vec![("OTEL_EXPORTER_OTLP_ENDPOINT", "http://u:s3cret@a")], "without user"),
        (vec![("OTEL_EXPORTER_OTLP_ENDPOINT", "http://a/x")], "without a path for gRPC"),
        (vec![http, ("OTEL_EXPORTER_OTLP_ENDPOINT", "a:4318")], "want http://HOST"),
        (vec![http, ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://a/?key=s3cret")], "without a query"),
        (
            with(&[("OTEL_EXPORTER_OTLP_PROTOCOL", "http/json")]),
            "PROTOCOL \"http/json\": want grpc or http/protobuf",
        ),
        (with(&[("OTEL_EXPORTER_OTLP_TIMEOUT", "10s")]), "TIMEOUT \"10s\": want milliseconds, from 1 to"),
        (with(&[("OTEL_EXPORTER_OTLP_TIMEOUT", "0")]), "want milliseconds"),
        (with(&[("OTEL_EXPORTER_OTLP_COMPRESSION", "zstd")]), "want gzip or none"),
        (with(&[("OTEL_EXPORTER_OTLP_INSECURE", "yes")]), "INSECURE \"yes\": want true or false"),
        (with(&[("OTEL_EXPORTER_OTLP_CLIENT_KEY", "/k")]), "want the certificate too"),
        (with(&[("OTEL_EXPORTER_OTLP_TRACES_CLIENT_CERTIFICATE", "/c")]), "want the key too"),
        (with(&[("OTEL_EXPORTER_OTLP_HEADERS", "a=1,s3cret")]), "number 2 is none"),
        (
            with(&[("OTEL_EXPORTER_OTLP_HEADERS", "a=s3cret%0a")]),
            "OTEL_EXPORTER_OTLP_HEADERS: a: want a name",
        ),
        (with(&[("OTEL_EXPORTER_OTLP_HEADERS", "a=%zz")]), "number 1 is none"),
        (with(&[("OTEL_EXPORTER_OTLP_HEADERS", "Content-Type=x")]), "not the protocol's own"),
        (with(&[("OTEL_EXPORTER_OTLP_HEADERS", "grpc-timeout=1S")]), "not the protocol's own"),
        (with(&[("OTEL_EXPORTER_OTLP_HEADERS", "x-bin=1")]), "binary ones are not supported"),
        (vec![("OTEL_SDK_DISABLED", "1")], "OTEL_SDK_DISABLED \"1\": want true or false"),
        (vec![("OTEL_TRACES_EXPORTER", "zipkin")], "OTEL_TRACES_EXPORTER \"zipkin\": want otlp or none"),
        (
            vec![("OTEL_METRICS_EXPORTER", "console")],
            "OTEL_METRICS_EXPORTER \"console\": want otlp, prometheus",
        ),
        (vec![("OTEL_TRACES_SAMPLER", "jaeger_remote")], "OTEL_TRACES_SAMPLER \"jaeger_remote\": "),
        (vec![("OTEL_TRACES_SAMPLER_ARG", "1.5")], "OTEL_TRACES_SAMPLER_ARG \"1.5\": "),
        (vec![("OTEL_PROPAGATORS", "xray")], "OTEL_PROPAGATORS \"xray\": "),
        (vec![("OTEL_BSP_SCHEDULE_DELAY", "-1")], "OTEL_BSP_SCHEDULE_DELAY \"-1\": want milliseconds"),
        (vec![("OTEL_BSP_MAX_QUEUE_SIZE", "0")], "want a number from 1 to 100000"),
        (vec![("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", "3000")], "want at most OTEL_BSP_MAX_QUEUE_SIZE, 2048"),
        (vec![("OTEL_BSP_EXPORT_TIMEOUT", "x")], "OTEL_BSP_EXPORT_TIMEOUT \"x\": want"),
        (vec![("OTEL_METRIC_EXPORT_INTERVAL", "99")], "want milliseconds, from 100 to"),
        (vec![("OTEL_RESOURCE_ATTRIBUTES", "a=%ff")], "OTEL_RESOURCE_ATTRIBUTES: a: want UTF-8"),
        (vec![("OTEL_RESOURCE_ATTRIBUTES", "=1")], "OTEL_RESOURCE_ATTRIBUTES: want NAME=VALUE pairs"),
    ] {
        let report = parse(&variables, "").unwrap_err();
        assert!(
            report.contains(problem) && report.contains("1 setting is wrong"),
            "{variables:?}:\n{report}"
        );
        assert!(!report.contains("s3cret"), "{report}");
    }
    for (flags, problem) in [
        ("--trace-keep everything", "--trace-keep \"everything\": "),
        ("--trace-keep slower=1", "--trace-keep \"slower=1\": "),
        ("--trace-max-per-second 0", "--trace-max-per-second \"0\": want a number from 1 to 1000000"),
    ] {
        let report = parse(&[], flags).unwrap_err();
        assert!(report.contains(problem) && report.contains("1 setting is wrong"), "{flags}:\n{report}");
    }
}

#[test]
fn several_mistakes_are_said_at_once() {
    let variables = with(&[("OTEL_EXPORTER_OTLP_TIMEOUT", "x"), ("OTEL_PROPAGATORS", "y")]);
    let report = parse(&variables, "--trace-keep z").unwrap_err();
    assert!(report.contains("3 settings are wrong"), "{report}");
}

#[test]
fn an_argument_means_nothing_to_a_sampler_without_a_ratio() {
    let traces =
        traces(&with(&[("OTEL_TRACES_SAMPLER", "always_on"), ("OTEL_TRACES_SAMPLER_ARG", "endpoint=x")]));
    assert_eq!(traces.policy.to_string(), "always_on");
}
