//! The configuration in force: immutable, compiled, shared between versions where it did not change.

use std::sync::Arc;

use outrigger_proto::spec::{
    Backend, BackendKey, Destination, DestinationKey, FieldError, Held, Inbound, InboundPort, Key, Resource,
    ServicePort, Trust, Update, Workload, Protocol,
};
use serde::{Serialize, Serializer};

use crate::{authorize::Policies, route::CompiledRoute};

/// Everything a request needs to know, at one moment.
#[derive(Clone, Debug, Default)]
pub struct Snapshot {
    _private: (),
}

#[derive(Debug)]
pub struct CompiledInbound {
    pub spec: Arc<Inbound>,
    pub policies: Policies,
}

/// What an address or authority means, with its routes compiled.
#[derive(Debug)]
pub struct CompiledDestination {
    pub spec: Arc<Destination>,
    pub target: Target,
}

#[derive(Debug)]
pub enum Target {
    Service(ServiceTarget),
    /// One workload; `backend` holds its only endpoint, so that it is used like any other backend.
    Workload { backend: Arc<Backend>, protocol: Protocol },
    External,
}

#[derive(Debug)]
pub struct ServiceTarget {
    pub protocol: Protocol,
    /// Empty: everything goes to `backend`.
    pub routes: Vec<Arc<CompiledRoute>>,
    pub backend: BackendKey,
}

impl Snapshot {
    /// Takes an update as a whole or refuses it as a whole, naming every broken field.
    pub fn apply(&self, _update: Update) -> Result<Self, Vec<FieldError>> {
        unimplemented!()
    }
    /// `None`: not configured yet (the proxy is not ready).
    pub fn inbound(&self) -> Option<&Arc<CompiledInbound>> {
        unimplemented!()
    }
    pub fn trust(&self) -> Option<&Arc<Trust>> {
        unimplemented!()
    }
    pub fn destination(&self, _key: &DestinationKey) -> Option<&Arc<CompiledDestination>> {
        unimplemented!()
    }
    pub fn backend(&self, _key: &BackendKey) -> Option<&Arc<Backend>> {
        unimplemented!()
    }
    pub fn destinations(&self) -> impl Iterator<Item = (&DestinationKey, &Arc<CompiledDestination>)> {
        std::iter::empty()
    }
    pub fn backends(&self) -> impl Iterator<Item = (&BackendKey, &Arc<Backend>)> {
        std::iter::empty()
    }
    /// For Hello.
    pub fn held(&self) -> Vec<Held> {
        unimplemented!()
    }
    /// All resources, as for the snapshot on disk, sorted by key.
    pub fn resources(&self) -> Vec<Resource> {
        unimplemented!()
    }
    /// Without these keys (unsubscribed destinations), and without backends that nothing refers to any more.
    pub fn without(&self, _keys: &[Key]) -> Self {
        unimplemented!()
    }
}

impl CompiledInbound {
    /// The declaration of a port, or the default for undeclared ones.
    pub fn port(&self, _port: u16) -> InboundPort {
        unimplemented!()
    }
}

impl Serialize for Snapshot {
    fn serialize<S: Serializer>(&self, _serializer: S) -> Result<S::Ok, S::Error> {
        unimplemented!()
    }
}

#[allow(unused)]
type Used = (ServicePort, Workload);
