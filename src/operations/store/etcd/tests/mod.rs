//! The promises that only the engine on etcd makes.
