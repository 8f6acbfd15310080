//! `[lockout]`.

use crate::model::limits;
use crate::schema::declare_table;
use crate::schema::duration;
use crate::schema::integer;

declare_table! { "lockout", false, "Lock-out after failed logins. Clients on loopback addresses are never locked out.",
    ATTEMPTS: Integer = "attempts", integer(limits::LOCKOUT_ATTEMPTS, 0, 1000), Reload,
        "Failed logins of one user from one address without a lock-out; the next one locks out for a second, each further one twice as long. 0 means no limit.";
    ADDRESS_ATTEMPTS: Integer = "address_attempts", integer(limits::LOCKOUT_ADDRESS_ATTEMPTS, 0, 100_000), Reload,
        "The same for one address, whatever the user. 0 means no limit.";
    LONGEST: DurationValue = "longest", duration(limits::LOCKOUT_LONGEST, 1, 24 * 3600), Reload,
        "The longest lock-out, and how long after its end failed logins are remembered.";
}
