-- A store with records of format 2, in tables of format 2. Never regenerate: a newer version must read it.
PRAGMA auto_vacuum = INCREMENTAL;
PRAGMA application_id = 0x736e7067;
CREATE TABLE annotations(
    backend TEXT NOT NULL,
    vm TEXT NOT NULL,
    backup TEXT NOT NULL,
    identity TEXT,
    written INTEGER NOT NULL,
    record TEXT NOT NULL,
    PRIMARY KEY(backend, vm, backup)
) STRICT, WITHOUT ROWID;
CREATE TABLE meta(name TEXT PRIMARY KEY, value INTEGER NOT NULL) STRICT;
INSERT INTO "meta" VALUES('schema',2);
INSERT INTO "meta" VALUES('beat',1795482123000);
CREATE TABLE operations(
    seq INTEGER PRIMARY KEY,
    revision INTEGER NOT NULL,
    verb TEXT NOT NULL,
    backend TEXT NOT NULL,
    vm TEXT NOT NULL,
    backup TEXT NOT NULL,
    principal TEXT NOT NULL,
    phase TEXT NOT NULL,
    live INTEGER NOT NULL,
    idem_key TEXT,
    idem_fingerprint BLOB,
    expires INTEGER,
    record TEXT NOT NULL
) STRICT;
INSERT INTO "operations" VALUES(1,1,'restore','one','vm-1','b','ada','accepted',1,'k1',X'0707070707070707070707070707070707070707070707070707070707070707',NULL,'{"format":2,"operation":{"seq":1,"revision":1,"principal":"ada","request":"r-1","backend":"one","intent":{"target":{"vm":"vm-1","backup":"b"},"identity":"1","change":{"restore":{}}},"idempotency":{"key":"k1","fingerprint":[7,7,7,7,7,7,7,7,7,7,7,7,7,7,7,7,7,7,7,7,7,7,7,7,7,7,7,7,7,7,7,7]},"phase":"accepted","progress":0,"calls":0,"created":1795482123000}}');
INSERT INTO "operations" VALUES(2,2,'restore','one','vm-2','b','ada','submitting',1,NULL,NULL,NULL,'{"format":2,"operation":{"seq":2,"revision":2,"principal":"ada","request":"r-1","backend":"one","intent":{"target":{"vm":"vm-2","backup":"b"},"identity":"1","change":{"restore":{}}},"phase":"submitting","progress":0,"calls":1,"created":1795482123000,"started":1795482123000}}');
INSERT INTO "operations" VALUES(3,4,'restore','one','vm-3','b','ada','running',1,'k3',X'0707070707070707070707070707070707070707070707070707070707070707',NULL,'{"format":2,"operation":{"seq":3,"revision":4,"principal":"ada","request":"r-1","backend":"one","intent":{"target":{"vm":"vm-3","backup":"b"},"identity":"1","change":{"restore":{}}},"idempotency":{"key":"k3","fingerprint":[7,7,7,7,7,7,7,7,7,7,7,7,7,7,7,7,7,7,7,7,7,7,7,7,7,7,7,7,7,7,7,7]},"phase":"running","progress":40,"calls":1,"baseline":"seen","task":"vm-5","created":1795482123000,"started":1795482123000}}');
INSERT INTO "operations" VALUES(4,3,'restore','one','vm-4','b','ada','uncertain',1,NULL,NULL,NULL,'{"format":2,"operation":{"seq":4,"revision":3,"principal":"ada","request":"r-1","backend":"one","intent":{"target":{"vm":"vm-4","backup":"b"},"identity":"1","change":{"restore":{}}},"phase":"uncertain","progress":0,"calls":1,"created":1795482123000,"started":1795482123000,"uncertain_since":1795482123000}}');
INSERT INTO "operations" VALUES(5,3,'restore','one','vm-5','b','ada','succeeded',0,'k5',X'0707070707070707070707070707070707070707070707070707070707070707',1796086923000,'{"format":2,"operation":{"seq":5,"revision":3,"principal":"ada","request":"r-1","backend":"one","intent":{"target":{"vm":"vm-5","backup":"b"},"identity":"1","change":{"restore":{}}},"idempotency":{"key":"k5","fingerprint":[7,7,7,7,7,7,7,7,7,7,7,7,7,7,7,7,7,7,7,7,7,7,7,7,7,7,7,7,7,7,7,7]},"phase":"succeeded","progress":100,"calls":1,"created":1795482123000,"started":1795482123000,"completed":1795482123000,"expires":1796086923000}}');
INSERT INTO "operations" VALUES(6,4,'restore','one','vm-6','b','ada','unknown',0,NULL,NULL,NULL,'{"format":2,"operation":{"seq":6,"revision":4,"principal":"ada","request":"r-1","backend":"one","intent":{"target":{"vm":"vm-6","backup":"b"},"identity":"1","change":{"restore":{}}},"phase":"unknown","progress":100,"calls":1,"fault":{"kind":"outcome-unknown","text":"It cannot be found out whether the VM was restored. Look at the state of the VM in its VM manager before starting or restoring it."},"created":1795482123000,"started":1795482123000,"completed":1795482123000,"uncertain_since":1795482123000}}');
INSERT INTO "operations" VALUES(7,4,'restore','one','vm-7','b','ada','not-executed',0,'k7',X'0707070707070707070707070707070707070707070707070707070707070707',1796086923000,'{"format":2,"operation":{"seq":7,"revision":4,"principal":"ada","request":"r-1","backend":"one","intent":{"target":{"vm":"vm-7","backup":"b"},"identity":"1","change":{"restore":{}}},"idempotency":{"key":"k7","fingerprint":[7,7,7,7,7,7,7,7,7,7,7,7,7,7,7,7,7,7,7,7,7,7,7,7,7,7,7,7,7,7,7,7]},"phase":"not-executed","progress":100,"calls":0,"fault":{"kind":"not-executed","text":"The VM manager never began this; nothing was changed. It can safely be asked for again."},"created":1795482123000,"started":1795482123000,"completed":1795482123000,"uncertain_since":1795482123000,"expires":1796086923000}}');
CREATE INDEX by_principal ON operations(principal, seq);
CREATE INDEX by_target ON operations(backup, vm, seq);
CREATE INDEX by_vm ON operations(vm, seq);
CREATE INDEX by_live ON operations(seq) WHERE live = 1;
CREATE INDEX by_expires ON operations(expires) WHERE expires IS NOT NULL;
CREATE INDEX by_unknown ON operations(seq) WHERE phase = 'unknown' AND expires IS NULL;
CREATE UNIQUE INDEX by_scoped_key ON operations(principal, idem_key, verb, vm,
    (CASE verb WHEN 'create' THEN '' ELSE backup END)) WHERE idem_key IS NOT NULL;
PRAGMA journal_mode = WAL;
