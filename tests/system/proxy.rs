//! A TCP proxy in the data link that can do to it what networks do: cut, stall (one way too), delay, slow down, damage a byte, end in
//! the middle of a frame.

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread::{self, JoinHandle};
use std::time::Duration;

/// How often a waiting thread looks whether something changed.
const LOOK_INTERVAL: Duration = Duration::from_millis(5);

/// The two directions through the proxy.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Way {
    /// From the node that dials to the one that accepts.
    Forth,
    Back,
}

impl Way {
    fn index(self) -> usize {
        usize::from(self == Self::Back)
    }
}

/// How a chunk goes on.
struct Passage {
    /// Bytes of it that do.
    len: usize,
    /// It takes so long.
    time: Duration,
}

#[derive(Default)]
struct Weather {
    over: bool,
    cut: bool,
    /// Nothing is carried: forth, back.
    stalled: [bool; 2],
    /// Each chunk is held for so long.
    delay: Duration,
    /// Half of the next chunk that goes this way is carried, and then the connection ends.
    tear: Option<Way>,
    /// Bytes a second in each direction; none: as fast as it goes.
    rate: Option<u64>,
    /// A bit is flipped in the next chunk of at least so many bytes in that direction.
    damage: Option<(Way, usize)>,
    connections: Vec<TcpStream>,
}

pub(crate) struct Proxy {
    weather: Arc<Mutex<Weather>>,
    accepting: Option<JoinHandle<()>>,
}

impl Proxy {
    /// Carries connections from `from` to `to`, until dropped.
    pub(crate) fn start(from: &str, to: &str) -> Self {
        let listener = TcpListener::bind(from).expect("the address is this test's own");
        listener.set_nonblocking(true).expect("sockets can do that");
        let weather = Arc::new(Mutex::new(Weather::default()));
        let (shared, to) = (Arc::clone(&weather), to.to_owned());
        let accepting = thread::spawn(move || accept(&listener, &to, &shared));
        Self { weather, accepting: Some(accepting) }
    }

    /// Closes every connection and lets none through until `mend`.
    pub(crate) fn cut(&self) {
        let mut weather = self.now();
        weather.cut = true;
        weather.close_all();
    }

    /// Closes every connection; new ones go through.
    pub(crate) fn reset(&self) {
        self.now().close_all();
    }

    /// Keeps connections open and carries nothing, as when a cable is pulled.
    pub(crate) fn stall(&self) {
        self.now().stalled = [true; 2];
    }

    /// Keeps connections open and carries nothing that goes `way`, as when one fibre of two is broken.
    pub(crate) fn stall_one_way(&self, way: Way) {
        self.now().stalled[way.index()] = true;
    }

    /// Holds each chunk for so long.
    pub(crate) fn delay(&self, delay: Duration) {
        self.now().delay = delay;
    }

    /// Ends the connection in the middle of the next chunk that goes `way`.
    pub(crate) fn tear(&self, way: Way) {
        self.now().tear = Some(way);
    }

    pub(crate) fn mend(&self) {
        let mut weather = self.now();
        weather.cut = false;
        weather.stalled = [false; 2];
        weather.delay = Duration::ZERO;
        weather.rate = None;
    }

    /// Carries no more than `rate` bytes a second in each direction.
    pub(crate) fn slow(&self, rate: u64) {
        self.now().rate = Some(rate);
    }

    /// Flips one bit in the middle of the next chunk of at least `len_min` bytes that goes `way`.
    pub(crate) fn damage(&self, way: Way, len_min: usize) {
        self.now().damage = Some((way, len_min));
    }

    /// True when the damage that was ordered has been done.
    pub(crate) fn has_damaged(&self) -> bool {
        self.now().damage.is_none()
    }

    fn now(&self) -> MutexGuard<'_, Weather> {
        self.weather.lock().expect("nobody panics with the weather in hand")
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        let mut weather = self.now();
        weather.over = true;
        weather.close_all();
        drop(weather);
        if let Some(accepting) = self.accepting.take() {
            let _ = accepting.join();
        }
    }
}

impl Weather {
    fn close_all(&mut self) {
        for connection in self.connections.drain(..) {
            // It may be closed already.
            let _ = connection.shutdown(Shutdown::Both);
        }
    }

    fn adopt(&mut self, stream: &TcpStream) {
        self.connections.push(stream.try_clone().expect("there are descriptors left"));
    }
}

fn accept(listener: &TcpListener, to: &str, weather: &Arc<Mutex<Weather>>) {
    loop {
        let state = weather.lock().expect("as in `now`");
        let (over, cut) = (state.over, state.cut);
        drop(state);
        if over {
            return;
        }
        match listener.accept() {
            Ok((client, _)) if !cut => carry(client, to, weather),
            // Dropped, as a router that has no route would refuse.
            Ok(_) => {}
            Err(error) if error.kind() == ErrorKind::WouldBlock => thread::sleep(LOOK_INTERVAL),
            Err(error) => panic!("the proxy cannot accept: {error}"),
        }
    }
}

fn carry(client: TcpStream, to: &str, weather: &Arc<Mutex<Weather>>) {
    // Nobody there: the client sees the end, as it would without a proxy.
    let Ok(server) = TcpStream::connect(to) else { return };
    for stream in [&client, &server] {
        stream.set_nonblocking(false).expect("sockets can do that");
        stream.set_nodelay(true).expect("sockets can do that");
    }
    let mut state = weather.lock().expect("as in `now`");
    state.adopt(&client);
    state.adopt(&server);
    drop(state);
    let clone = |stream: &TcpStream| stream.try_clone().expect("there are descriptors left");
    let ways = [(clone(&client), clone(&server), Way::Forth), (server, client, Way::Back)];
    for (from, into, way) in ways {
        let weather = Arc::clone(weather);
        thread::spawn(move || pump(from, into, way, &weather));
    }
}

/// Carries bytes one way until either end is closed.
fn pump(mut from: TcpStream, mut into: TcpStream, way: Way, weather: &Mutex<Weather>) {
    let mut chunk = vec![0; 64 << 10];
    while let Ok(len @ 1..) = from.read(&mut chunk) {
        let Some(passage) = passes(weather, way, &mut chunk[..len]) else { break };
        thread::sleep(passage.time);
        if into.write_all(&chunk[..passage.len]).is_err() || passage.len < len {
            break;
        }
    }
    // A cable that carries nothing does not carry the end of a connection either.
    let _ = passes(weather, way, &mut []);
    let _ = from.shutdown(Shutdown::Both);
    let _ = into.shutdown(Shutdown::Both);
}

/// Waits while the link is stalled, damages the chunk if that was ordered, and says how it goes on; none at the end.
fn passes(weather: &Mutex<Weather>, way: Way, chunk: &mut [u8]) -> Option<Passage> {
    loop {
        let mut state = weather.lock().expect("as in `now`");
        if state.over {
            return None;
        }
        if state.stalled[way.index()] {
            drop(state);
            thread::sleep(LOOK_INTERVAL);
            continue;
        }
        if state.damage.is_some_and(|(which, len_min)| which == way && chunk.len() >= len_min.max(1)) {
            chunk[chunk.len() / 2] ^= 0x10;
            state.damage = None;
        }
        let torn = !chunk.is_empty() && state.tear.take_if(|which| *which == way).is_some();
        let bytes = u64::try_from(chunk.len()).expect("a chunk is small");
        let rate_time = state.rate.map_or(0, |rate| bytes * 1_000_000 / rate.max(1));
        let len = if torn { chunk.len() / 2 } else { chunk.len() };
        return Some(Passage { len, time: state.delay + Duration::from_micros(rate_time) });
    }
}
