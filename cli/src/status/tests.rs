use std::time::{Duration, UNIX_EPOCH};

use super::*;

fn report(edit: impl FnOnce(&mut serde_json::Value)) -> Report {
    let mut json = serde_json::json!({
        "version": "0.1.0", "uptime_seconds": 90, "ready": true, "reasons": [],
        "ca": {"trust_domain": "mesh.local", "roots": [], "error": null, "something_newer": 1},
        "configuration": {"generation": 3, "version": "abcd", "taken_at": 1000, "files": ["a.yaml"], "errors": []},
        "proxies": [
            {"identity": "spiffe://mesh.local/ns/shop/sa/web", "instance": "0123456789", "version": "0.1.0",
             "labels": {"app": "web"}, "addresses": ["10.0.0.1"], "zone": "", "ready": true, "connected": true,
             "in_sync": true, "acked_generation": 3, "subscriptions": 4},
        ],
        "services": [
            {"namespace": "shop", "name": "orders", "addresses": ["10.96.0.10"],
             "ports": [{"port": 80, "protocol": "http", "routes": ["shop/split"],
                        "endpoints": [{"address": "10.0.0.2:8080"}, {"address": "10.0.0.3:8080"}]}]},
        ],
    });
    edit(&mut json);
    Report::deserialize(&json).unwrap()
}

fn told(edit: impl FnOnce(&mut serde_json::Value)) -> String {
    describe(&report(edit), "http://127.0.0.1:15014", UNIX_EPOCH + Duration::from_secs(1060))
}

#[test]
fn a_healthy_mesh_is_a_page() {
    assert_eq!(
        told(|_| {}),
        "\
CONTROL PLANE http://127.0.0.1:15014
  version 0.1.0, up 90 s, trust domain mesh.local
  ready
  configuration in force: generation 3 (abcd), 1 files, taken 60 s ago

PROXIES (1)
IDENTITY                            INSTANCE  ADDRESS   ZONE  LABELS   STATE  CONFIGURATION  KEYS  VERSION
spiffe://mesh.local/ns/shop/sa/web  01234567  10.0.0.1  -     app=web  ready  generation 3   4     0.1.0

SERVICES (1)
SERVICE      PORT  PROTOCOL  ADDRESS     ROUTES      ENDPOINTS
shop/orders  80    http      10.96.0.10  shop/split  10.0.0.2:8080,10.0.0.3:8080
"
    );
}

#[test]
fn errors_and_refusals_come_before_the_tables() {
    let told = told(|json| {
        json["configuration"]["errors"] = serde_json::json!([
            {"file": "a.yaml", "line": 7, "column": 30, "object": "MeshService shop/orders",
             "field": "spec.ports[0].port", "reason": "0 is not a port"},
            {"file": "b.yaml", "line": 1, "column": 1, "object": "", "field": "", "reason": "broken"},
        ]);
        json["proxies"][0]["refused"] = serde_json::json!([
            {"key": "backend/shop/orders:80", "version": "x", "errors": [{"field": "resources[0].backend", "reason": "no"}]},
        ]);
    });
    let errors = "\
CONFIGURATION ERRORS (2); generation 3 stays in force
  a.yaml:7:30: MeshService shop/orders: spec.ports[0].port: 0 is not a port
  b.yaml:1:1: broken

REFUSED BY PROXIES (1)
  spiffe://mesh.local/ns/shop/sa/web (0123456789): backend/shop/orders:80: resources[0].backend: no

PROXIES (1)
";
    assert!(told.contains(errors), "{told}");
    assert!(told.contains("ready  refused 1"), "{told}");
}

#[test]
fn states_of_proxies_are_words() {
    for (field, value, word) in [
        ("ready", false, "not ready"),
        ("draining", true, "draining"),
        ("connected", false, "away"),
        ("presence_only", true, "elsewhere"),
        ("in_sync", false, "generation 3, behind"),
    ] {
        let told = told(|json| json["proxies"][0][field] = value.into());
        assert!(told.contains(word), "{field}={value}: {told}");
    }
}

#[test]
fn a_control_plane_without_configuration_says_why() {
    let told = told(|json| {
        json["ready"] = false.into();
        json["reasons"] = serde_json::json!(["no configuration yet"]);
        json["configuration"]["generation"] = 0.into();
        json["proxies"] = serde_json::json!([]);
        json["services"] = serde_json::json!([]);
    });
    assert!(told.contains("not ready: no configuration yet\n  configuration in force: none\n"), "{told}");
    assert!(told.ends_with("PROXIES (0)\n\nSERVICES (0)\n"), "{told}");
}

#[test]
fn circuits_that_are_not_closed_say_who_thinks_so_and_why() {
    let told = told(|json| {
        json["circuits"] = serde_json::json!([
            {"service": "shop/orders:80", "circuits": [
                {"endpoint": "10.0.0.2:8080", "callers": 3, "opened_by": [
                    {"identity": "spiffe://mesh.local/ns/shop/sa/web", "to": "open", "at": 1_050_000,
                     "why": "5 failures in a row (limit 5)", "evidence": []},
                ]},
            ]},
        ]);
        json["shared_limits"] = serde_json::json!([
            {"limit": "ServerPolicy/shop/orders/all", "holders": [
                {"identity": "spiffe://mesh.local/ns/shop/sa/orders", "address": "10.0.0.2:4000",
                 "demand": 2_500_000, "share": 970_000},
            ]},
        ]);
    });
    assert!(
        told.ends_with(
            "\
CIRCUITS NOT CLOSED (1)
SERVICE         ENDPOINT       CIRCUIT  CALLERS  SEEN BY                             SINCE     WHY
shop/orders:80  10.0.0.2:8080  open     1 of 3   spiffe://mesh.local/ns/shop/sa/web  10 s ago  5 failures in a row (limit 5)

SHARED LIMITS (1)
SHARED LIMIT                  HELD BY                                AT             DEMAND   SHARE
ServerPolicy/shop/orders/all  spiffe://mesh.local/ns/shop/sa/orders  10.0.0.2:4000  250.0 %  97.0 %
"
        ),
        "{told}"
    );
}

#[test]
fn what_is_kept_of_traffic_is_told_with_what_is_wrong() {
    let told = told(|json| {
        json["history"] = serde_json::json!({
            "loaded": false, "bytes": 3_565_158, "cap_bytes": 67_108_864, "series": 12, "folded": 2, "epochs": 3,
            "fine_seconds": 600, "kept_seconds": 21_600, "reports": 5,
            "disk": {"bytes": 0, "cap_bytes": 268_435_456, "error": "No space left on device"},
        });
        json["events"] = serde_json::json!({"last": 10_012, "held": 10_000, "error": null});
    });
    assert!(
        told.ends_with(
            "\
TELEMETRY
  traffic of 6 h, by the second of 10 min; 12 series, 3.4 MiB of 64.0 MiB memory, 0.0 MiB of 256.0 MiB disk
  what was saved before the start is being read
  NO ROOM for 2 series: they count as `other`
  TRAFFIC NOT ON DISK: No space left on device
  events 13..10012
"
        ),
        "{told}"
    );
}
