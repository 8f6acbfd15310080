//! `[insecure]`.

use crate::schema::Flag;
use crate::schema::declare_table;

declare_table! { "insecure", false, "Security downgrades, all off by default.",
    PLAINTEXT: Flag = "plaintext", Flag(false), Reload,
        "Allows `listen` on an address that other machines can reach, where passwords are sent in cleartext.";
}
