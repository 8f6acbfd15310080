//! Who waits for a password check, how many, and whose turn is next.
//!
//! A check costs tens of milliseconds of a core, so a storm of wrong passwords asks for more of them than there can be. The queue is
//! short: a request that would wait longer than about [`limits::PASSWORD_WAIT`] is refused at once and may try again. Clients take turns,
//! so one that sends many requests waits behind one that sends a few. Clients whose address had no wrong password lately have a lane
//! of their own, which goes first three times out of four, and one place is never given to the others.

use std::collections::BTreeMap;
use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::oneshot;

use crate::model::limits;

/// How often in a row the lane without failures goes first while others wait.
const PREFERRED_IN_A_ROW: u32 = 3;

/// The lane of a client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::gate) enum ClientStanding {
    /// No wrong password came from its address lately.
    Clean,
    /// A wrong password came from its address lately.
    HasFailed,
}

/// Too many others wait: no password was checked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::gate) struct PasswordQueueFull;

/// The requests that wait for a password check. Outlives reloads.
#[derive(Debug)]
pub(in crate::gate) struct PasswordQueue {
    /// Checks at once.
    places: usize,
    state: Mutex<QueueState>,
}

#[derive(Debug)]
struct QueueState {
    free: usize,
    /// Places that only clients without failures get.
    reserved: usize,
    /// How long a check takes.
    average: Duration,
    clean: Lane,
    failed: Lane,
    preferred_in_a_row: u32,
    next_ticket: u64,
}

/// Requests of one standing.
#[derive(Debug, Default)]
struct Lane {
    /// The clients that wait, in the order of their turns.
    turns: VecDeque<u64>,
    waiting: BTreeMap<u64, VecDeque<Entry>>,
    count: usize,
}

#[derive(Debug)]
struct Entry {
    ticket: u64,
    call: oneshot::Sender<()>,
}

impl Lane {
    fn push(&mut self, client: u64, entry: Entry) {
        let entries = self.waiting.entry(client).or_default();
        if entries.is_empty() {
            self.turns.push_back(client);
        }
        entries.push_back(entry);
        self.count = self.count.saturating_add(1);
    }

    /// The entry whose turn it is.
    fn pop(&mut self) -> Option<Entry> {
        let client = self.turns.pop_front()?;
        let entries = self.waiting.get_mut(&client)?;
        let entry = entries.pop_front();
        if entries.is_empty() {
            self.waiting.remove(&client);
        } else {
            self.turns.push_back(client);
        }
        self.count = self.count.saturating_sub(1);
        entry
    }

    /// Whether the entry was there.
    fn remove(&mut self, client: u64, ticket: u64) -> bool {
        let Some(entries) = self.waiting.get_mut(&client) else {
            return false;
        };
        let before = entries.len();
        entries.retain(|entry| entry.ticket != ticket);
        let is_removed = entries.len() < before;
        if entries.is_empty() {
            self.waiting.remove(&client);
            self.turns.retain(|other| *other != client);
        }
        if is_removed {
            self.count = self.count.saturating_sub(1);
        }
        is_removed
    }

    /// Takes the newest entry of the client that has most of them, if this leaves it with as many as `client` will have.
    fn make_room_for(&mut self, client: u64) -> bool {
        let own = self.waiting.get(&client).map_or(0, VecDeque::len);
        let most = self.waiting.iter().max_by_key(|(_, entries)| entries.len());
        let Some((other, _)) = most.filter(|(_, entries)| entries.len() > own.saturating_add(1))
        else {
            return false;
        };
        let other = *other;
        let newest = self.waiting.get_mut(&other).and_then(VecDeque::pop_back);
        self.count = self.count.saturating_sub(1);
        // Its request learns from the closed channel.
        newest.is_some()
    }
}

impl QueueState {
    const fn lane(&mut self, standing: ClientStanding) -> &mut Lane {
        match standing {
            ClientStanding::Clean => &mut self.clean,
            ClientStanding::HasFailed => &mut self.failed,
        }
    }

    /// Whether a client of this standing can begin, however many wait.
    const fn has_place(&self, standing: ClientStanding) -> bool {
        match standing {
            ClientStanding::Clean => self.free > 0,
            ClientStanding::HasFailed => self.free > self.reserved,
        }
    }

    /// The lane whose turn it is, if there is a place for it.
    fn next_lane(&self) -> Option<ClientStanding> {
        let clean = self.clean.count > 0 && self.has_place(ClientStanding::Clean);
        let failed = self.failed.count > 0 && self.has_place(ClientStanding::HasFailed);
        let is_turn_of_others = self.preferred_in_a_row >= PREFERRED_IN_A_ROW;
        match (clean, failed) {
            (true, true) if is_turn_of_others => Some(ClientStanding::HasFailed),
            (true, _) => Some(ClientStanding::Clean),
            (false, true) => Some(ClientStanding::HasFailed),
            (false, false) => None,
        }
    }

    /// Calls as many as there are places for.
    fn call_next(&mut self) {
        while let Some(standing) = self.next_lane() {
            self.preferred_in_a_row = match standing {
                ClientStanding::Clean if self.failed.count > 0 => {
                    self.preferred_in_a_row.saturating_add(1)
                }
                ClientStanding::Clean | ClientStanding::HasFailed => 0,
            };
            let Some(entry) = self.lane(standing).pop() else {
                return;
            };
            // The receiver is there: a request that leaves takes its entry with it, under the same lock.
            if entry.call.send(()).is_ok() {
                self.free = self.free.saturating_sub(1);
            }
        }
    }

    fn release(&mut self) {
        self.free = self.free.saturating_add(1);
        self.call_next();
    }
}

impl PasswordQueue {
    /// A queue for so many checks at once, at least one.
    pub(in crate::gate) fn new(places: usize) -> Arc<Self> {
        let places = places.max(1);
        Arc::new(Self {
            places,
            state: Mutex::new(QueueState {
                free: places,
                reserved: usize::from(places > 1),
                average: limits::PASSWORD_CHECK_EXPECTED,
                clean: Lane::default(),
                failed: Lane::default(),
                preferred_in_a_row: 0,
                next_ticket: 0,
            }),
        })
    }

    /// Waits for the turn of a client. Cancel-safe: a request that is dropped leaves the queue.
    ///
    /// # Errors
    /// [`PasswordQueueFull`], at once, or when clients with fewer requests need the room.
    pub(in crate::gate) async fn acquire(
        self: &Arc<Self>,
        client: u64,
        standing: ClientStanding,
    ) -> Result<CheckPlace, PasswordQueueFull> {
        let mut waiting = {
            let mut state = self.state.lock();
            if state.lane(standing).count == 0 && state.has_place(standing) {
                state.free = state.free.saturating_sub(1);
                return Ok(CheckPlace(Arc::clone(self)));
            }
            let most = self.entries_max(state.average);
            let lane = state.lane(standing);
            if lane.count >= most && !lane.make_room_for(client) {
                return Err(PasswordQueueFull);
            }
            let ticket = state.next_ticket;
            state.next_ticket = ticket.wrapping_add(1);
            let (call, called) = oneshot::channel();
            state.lane(standing).push(client, Entry { ticket, call });
            // A place may be free that the others in the lane could not have.
            state.call_next();
            WaitingRequest {
                queue: Arc::clone(self),
                standing,
                client,
                ticket,
                called,
                is_over: false,
            }
        };
        let called = (&mut waiting.called).await;
        waiting.is_over = true;
        match called {
            Ok(()) => Ok(CheckPlace(Arc::clone(self))),
            Err(_) => Err(PasswordQueueFull),
        }
    }

    /// Records how long a check took, which decides how many may wait.
    pub(in crate::gate) fn record_check(&self, took: Duration) {
        let mut state = self.state.lock();
        let weighted = state.average.saturating_mul(7).saturating_add(took);
        state.average = weighted.checked_div(8).unwrap_or(took);
    }

    /// How many may wait in a lane: as many as are checked within the longest wait.
    fn entries_max(&self, average: Duration) -> usize {
        let places = u128::try_from(self.places).unwrap_or(1);
        let micros = limits::PASSWORD_WAIT.as_micros().saturating_mul(places);
        let entries = micros.checked_div(average.as_micros().max(1));
        let entries = usize::try_from(entries.unwrap_or(0)).unwrap_or(usize::MAX);
        entries.clamp(limits::PASSWORD_QUEUE_MIN, limits::PASSWORD_QUEUE_MAX)
    }

    /// The requests that wait.
    #[cfg(test)]
    fn waiting(&self) -> usize {
        let state = self.state.lock();
        state.clean.count.saturating_add(state.failed.count)
    }
}

/// A place for one check; released when dropped. It goes with the check onto its thread, so that a client that leaves does not
/// free the place of a check that goes on.
#[derive(Debug)]
pub(in crate::gate) struct CheckPlace(Arc<PasswordQueue>);

impl Drop for CheckPlace {
    fn drop(&mut self) {
        self.0.state.lock().release();
    }
}

/// A request in the queue; leaves it when dropped.
struct WaitingRequest {
    queue: Arc<PasswordQueue>,
    standing: ClientStanding,
    client: u64,
    ticket: u64,
    called: oneshot::Receiver<()>,
    is_over: bool,
}

impl Drop for WaitingRequest {
    fn drop(&mut self) {
        if self.is_over {
            return;
        }
        let mut state = self.queue.state.lock();
        let is_removed = state.lane(self.standing).remove(self.client, self.ticket);
        // Called and gone at the same moment: the place goes to the next one.
        if !is_removed && self.called.try_recv().is_ok() {
            state.release();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::future::Future;
    use std::pin::Pin;
    use std::task::Poll;

    use futures_util::poll;

    use super::ClientStanding::Clean;
    use super::ClientStanding::HasFailed;
    use super::*;

    type Waiter = Pin<Box<dyn Future<Output = Result<CheckPlace, PasswordQueueFull>>>>;

    /// What became of a request at once.
    enum Joined {
        Begun(CheckPlace),
        Waits(Waiter),
        Refused,
    }

    async fn join(queue: &Arc<PasswordQueue>, client: u64, standing: ClientStanding) -> Joined {
        let queue = Arc::clone(queue);
        let mut waiter: Waiter = Box::pin(async move { queue.acquire(client, standing).await });
        match poll!(waiter.as_mut()) {
            Poll::Ready(Ok(place)) => Joined::Begun(place),
            Poll::Ready(Err(PasswordQueueFull)) => Joined::Refused,
            Poll::Pending => Joined::Waits(waiter),
        }
    }

    /// Begins at once.
    async fn begun(
        queue: &Arc<PasswordQueue>,
        client: u64,
        standing: ClientStanding,
    ) -> CheckPlace {
        match join(queue, client, standing).await {
            Joined::Begun(place) => place,
            Joined::Waits(_) => panic!("{client} waits"),
            Joined::Refused => panic!("{client} is refused"),
        }
    }

    async fn waiting(queue: &Arc<PasswordQueue>, client: u64, standing: ClientStanding) -> Waiter {
        match join(queue, client, standing).await {
            Joined::Waits(waiter) => waiter,
            Joined::Begun(_) => panic!("{client} has begun"),
            Joined::Refused => panic!("{client} is refused"),
        }
    }

    /// Lets the checks end one after the other; returns the order in which the requests had their turns.
    async fn turns(
        mut held: CheckPlace,
        mut waiters: Vec<(&'static str, Waiter)>,
    ) -> Vec<&'static str> {
        let mut order = Vec::new();
        while !waiters.is_empty() {
            drop(held);
            let mut called = None;
            for (index, (_, waiter)) in waiters.iter_mut().enumerate() {
                if let Poll::Ready(found) = poll!(waiter.as_mut()) {
                    called = Some((index, found.unwrap()));
                    break;
                }
            }
            let (index, place) = called.expect("one is called");
            order.push(waiters.remove(index).0);
            held = place;
        }
        order
    }

    #[tokio::test]
    async fn clients_take_turns_however_many_requests_they_send() {
        let queue = PasswordQueue::new(1);
        let held = begun(&queue, 9, Clean).await;
        let mut waiters = Vec::new();
        for (name, client) in [
            ("a1", 1),
            ("a2", 1),
            ("a3", 1),
            ("b1", 2),
            ("c1", 3),
            ("b2", 2),
        ] {
            waiters.push((name, waiting(&queue, client, Clean).await));
        }
        let order = turns(held, waiters).await;
        assert_eq!(order, ["a1", "b1", "c1", "a2", "b2", "a3"], "in turns");
        begun(&queue, 1, Clean).await;
    }

    #[tokio::test]
    async fn clients_without_failures_go_first_and_the_others_are_not_forgotten() {
        let queue = PasswordQueue::new(1);
        let held = begun(&queue, 9, Clean).await;
        let mut waiters = Vec::new();
        for (name, client) in [("x", 11), ("y", 12)] {
            waiters.push((name, waiting(&queue, client, HasFailed).await));
        }
        for (name, client) in [("a", 1), ("b", 2), ("c", 3), ("d", 4), ("e", 5)] {
            waiters.push((name, waiting(&queue, client, Clean).await));
        }
        let order = turns(held, waiters).await;
        assert_eq!(order, ["a", "b", "c", "x", "d", "e", "y"], "three to one");
    }

    #[tokio::test]
    async fn one_place_is_kept_for_clients_without_failures() {
        let queue = PasswordQueue::new(3);
        let one = begun(&queue, 1, HasFailed).await;
        let two = begun(&queue, 2, HasFailed).await;
        let third = waiting(&queue, 3, HasFailed).await;
        let clean = begun(&queue, 4, Clean).await;
        drop(clean);
        let mut third = third;
        assert!(poll!(third.as_mut()).is_pending(), "it stays kept");
        drop(one);
        assert!(poll!(third.as_mut()).is_ready(), "its own turn");
        drop(two);
    }

    #[tokio::test]
    async fn requests_that_leave_take_their_entries_with_them() {
        let queue = PasswordQueue::new(1);
        let held = begun(&queue, 9, Clean).await;
        let first = waiting(&queue, 1, Clean).await;
        let second = waiting(&queue, 1, HasFailed).await;
        assert_eq!(queue.waiting(), 2, "both wait");
        drop(first);
        assert_eq!(queue.waiting(), 1, "one left");
        let third = waiting(&queue, 3, HasFailed).await;
        drop(held);
        // The second was called and has not noticed: its place goes on to the third.
        assert_eq!(queue.waiting(), 1, "the second was called");
        let mut third = third;
        assert!(poll!(third.as_mut()).is_pending(), "not yet");
        drop(second);
        assert!(poll!(third.as_mut()).is_ready(), "its turn");
        assert_eq!(queue.waiting(), 0, "none is left");
        drop(third);
        begun(&queue, 1, HasFailed).await;
    }

    #[tokio::test]
    async fn a_full_queue_refuses_and_the_client_with_most_entries_makes_room() {
        let queue = PasswordQueue::new(1);
        for _ in 0..100 {
            queue.record_check(limits::PASSWORD_WAIT);
        }
        let _held = begun(&queue, 9, Clean).await;
        let most = limits::PASSWORD_QUEUE_MIN;
        let mut flood = Vec::new();
        for _ in 0..most {
            flood.push(waiting(&queue, 1, Clean).await);
        }
        let full = join(&queue, 1, Clean).await;
        assert!(matches!(full, Joined::Refused), "full");
        let mut other = waiting(&queue, 2, Clean).await;
        assert_eq!(queue.waiting(), most, "as many as before");
        let newest = poll!(flood[most - 1].as_mut());
        assert!(
            matches!(newest, Poll::Ready(Err(PasswordQueueFull))),
            "the newest of the flood gave way"
        );
        assert!(poll!(flood[0].as_mut()).is_pending(), "the oldest waits on");
        assert!(poll!(other.as_mut()).is_pending(), "the other waits");
        let _other_lane = waiting(&queue, 3, HasFailed).await;
    }

    #[test]
    fn as_many_may_wait_as_are_checked_in_time() {
        let queue = PasswordQueue::new(2);
        let millis = Duration::from_millis;
        assert_eq!(
            queue.entries_max(millis(50)),
            20,
            "ten in half a second and place"
        );
        assert_eq!(
            queue.entries_max(millis(0)),
            limits::PASSWORD_QUEUE_MAX,
            "most"
        );
        let slow = queue.entries_max(Duration::from_secs(9));
        assert_eq!(slow, limits::PASSWORD_QUEUE_MIN, "fewest");
    }
}
