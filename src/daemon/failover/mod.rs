//! The shell around [`crate::failover`]: one task for each volume drives its machine.

mod etcd;
