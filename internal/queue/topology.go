package queue

import (
	"crypto/rand"
	"encoding/base32"
	"encoding/binary"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"sluice/internal/inference"
)

// Names of streams, consumers and buckets. Subjects are built by the functions
// below and nowhere else.
const (
	eventsStream   = "SLUICE_EVENTS"
	usageStream    = "SLUICE_USAGE"
	resultsStream  = "SLUICE_RESULTS"
	deadStream     = "SLUICE_DEAD"
	blobBucket     = "SLUICE_BLOBS"
	filesBucket    = "SLUICE_FILES"
	controlBucket  = "SLUICE_CONTROL"
	jobStreamStart = "SLUICE_JOB_"
	storedStart    = "SLUICE_STORED_"
	ledgerConsumer = "ledger"
	claimGroup     = "ingress" // the ingresses, of which one hears each claim on a stored job

	usageSubject    = "usage.records"
	presenceSubject = "ctl.presence"
)

// jobStream holds the provider's interactive lane, storedStream those of stored jobs.
// bucketStream is the stream of an object store.
func bucketStream(bucket string) string { return "OBJ_" + bucket }

func jobStream(provider string) string { return jobStreamStart + provider }

func storedStream(provider string) string { return storedStart + provider }

func laneStream(provider string, lane inference.Lane) string {
	if lane.Stored() {
		return storedStream(provider)
	}
	return jobStream(provider)
}

func jobSubject(provider string, lane inference.Lane) string {
	return "job." + provider + "." + string(lane)
}

func resultSubject(lane inference.Lane) string { return "result." + string(lane) }

// storedClaimSubject is where a claim on a stored job is heard by any one ingress.
func storedClaimSubject(lane inference.Lane, jobID string) string {
	return "ctl.stored." + string(lane) + "." + jobID
}

func eventsSubject(jobID string) string { return "evt." + IngressOf(jobID) + "." + jobID }

// The layout of an object store: chunks of each object, and one entry for each that says
// what the object is.
const (
	fileEntryStart = "$O." + filesBucket + ".M."
	fileEntries    = fileEntryStart + ">"
)

func fileChunks(id string) string { return "$O." + filesBucket + ".C." + id }

func deadSubject(provider string) string { return "dead." + provider }

func cancelSubject(provider string) string { return "ctl.cancel." + provider }

// resetSubject is where workers of the provider hear that breakers are to be closed, and
// purgeSubject where an ingress hears which of its jobs are to end.
func resetSubject(provider string) string { return "ctl.reset." + provider }

func purgeSubject(ingress string) string { return "ctl.purge." + ingress }

func workerInbox(worker string) string { return "wrk." + worker }

// What reaches an ingress arrives at rep.<ingress>.<what>.<job>; one wildcard
// subscription hears all of it.
const (
	whatEvents    = "evt"
	whatEnd       = "end"
	whatClaim     = "claim"
	whatPassed    = "pass"
	whatAttach    = "attach"
	whatPublished = "pub"
	whatBeat      = "beat"
)

func replySubject(what, jobID string) string {
	return "rep." + IngressOf(jobID) + "." + what + "." + jobID
}

// eventsReply is where a worker's chunks of all of an ingress's streams go.
func eventsReply(ingress, worker string) string {
	return "rep." + ingress + "." + whatEvents + "." + worker
}

func beatSubject(ingress string) string { return "rep." + ingress + "." + whatBeat + ".all" }

// An ingress id is 8 characters, a job id begins with its ingress's and is 26 long:
// ingress, time in milliseconds, randomness. Both are lower-case base32, so they
// are safe in subjects, headers and paths, and an answer finds its way by the
// job's id alone.
const (
	ingressIDLen = 8
	jobIDLen     = ingressIDLen + 10 + 8
)

var idEncoding = base32.NewEncoding("abcdefghijklmnopqrstuvwxyz234567").WithPadding(base32.NoPadding)

// NewProcessID returns a fresh id for an ingress or a worker.
func NewProcessID() string {
	var b [5]byte
	_, _ = rand.Read(b[:]) // crypto/rand.Read never fails
	return idEncoding.EncodeToString(b[:])
}

// NewJobID returns a fresh job id of the given ingress.
func NewJobID(ingress string, now time.Time) string {
	var b [6 + 5]byte
	var ms [8]byte
	binary.BigEndian.PutUint64(ms[:], uint64(now.UnixMilli()))
	copy(b[:6], ms[2:])
	_, _ = rand.Read(b[6:])
	return ingress + idEncoding.EncodeToString(b[:6]) + idEncoding.EncodeToString(b[6:])
}

// ValidJobID reports whether id has the form of a job id.
func ValidJobID(id string) bool {
	if len(id) != jobIDLen {
		return false
	}
	for i := range len(id) {
		c := id[i]
		if (c < 'a' || c > 'z') && (c < '2' || c > '7') {
			return false
		}
	}
	return true
}

// IngressOf returns the id of the ingress that accepted the job.
func IngressOf(jobID string) string {
	if len(jobID) < ingressIDLen {
		return jobID
	}
	return jobID[:ingressIDLen]
}

// Limits bounds what the queue holds.
type Limits struct {
	Storage       string // "memory" or "file", for the interactive lane
	Replicas      int
	AckWait       time.Duration // silence about a held job after which another worker gets it
	EventsBytes   int64
	EventsAge     time.Duration
	BlobsBytes    int64
	BlobsAge      time.Duration // backstop for bodies whose owner died; longer than any deadline
	FilesBytes    int64         // contents of files; zero: no bound
	UsageBytes    int64
	StoredJobs    int64 // messages of stored jobs that wait or run, for each provider; zero: no bound
	ResultsBytes  int64 // ends of stored jobs on their way to the database; zero: no bound
	DeadLetterAge time.Duration
}

func (l Limits) storage() jetstream.StorageType {
	if l.Storage == "file" {
		return jetstream.FileStorage
	}
	return jetstream.MemoryStorage
}

func (l Limits) jobs(provider string, maxQueued int) jetstream.StreamConfig {
	return jetstream.StreamConfig{
		Name:        jobStream(provider),
		Description: "Jobs of " + provider + " that are waiting or running, interactive lane.",
		Subjects:    []string{jobSubject(provider, inference.LaneInteractive)},
		Retention:   jetstream.WorkQueuePolicy,
		Storage:     l.storage(),
		Replicas:    l.Replicas,
		Discard:     jetstream.DiscardNew,
		MaxMsgs:     int64(maxQueued),
		Duplicates:  2 * time.Minute,
	}
}

func (l Limits) stored(provider string) jetstream.StreamConfig {
	return jetstream.StreamConfig{
		Name:        storedStream(provider),
		Description: "Jobs of " + provider + " that are waiting or running, background and batch lanes.",
		Subjects:    []string{jobSubject(provider, inference.LaneBackground), jobSubject(provider, inference.LaneBatch)},
		Retention:   jetstream.WorkQueuePolicy,
		Storage:     jetstream.FileStorage,
		Replicas:    l.Replicas,
		Discard:     jetstream.DiscardNew,
		MaxMsgs:     l.StoredJobs,
		Duplicates:  2 * time.Minute,
	}
}

func (l Limits) lane(provider string, lane inference.Lane, concurrency int) jetstream.ConsumerConfig {
	return jetstream.ConsumerConfig{
		Durable:       string(lane),
		FilterSubject: jobSubject(provider, lane),
		AckPolicy:     jetstream.AckExplicitPolicy,
		AckWait:       l.AckWait,
		MaxAckPending: concurrency, // what bounds the provider's calls across all its workers
		MaxWaiting:    4096,
		MemoryStorage: !lane.Stored() && l.storage() == jetstream.MemoryStorage,
	}
}

func (l Limits) results() jetstream.StreamConfig {
	return jetstream.StreamConfig{
		Name:        resultsStream,
		Description: "Ends of stored jobs on their way to the database.",
		Subjects:    []string{resultSubject(inference.LaneBackground), resultSubject(inference.LaneBatch)},
		Retention:   jetstream.WorkQueuePolicy,
		Storage:     jetstream.FileStorage,
		Replicas:    l.Replicas,
		Discard:     jetstream.DiscardNew, // a worker keeps its job until there is room for the end
		MaxBytes:    l.ResultsBytes,
		Duplicates:  2 * time.Minute,
	}
}

func (l Limits) resultsOf(lane inference.Lane) jetstream.ConsumerConfig {
	return jetstream.ConsumerConfig{
		Durable:       string(lane),
		FilterSubject: resultSubject(lane),
		AckPolicy:     jetstream.AckExplicitPolicy,
		AckWait:       l.AckWait,
		MaxAckPending: 10_000,
	}
}

func (l Limits) events() jetstream.StreamConfig {
	return jetstream.StreamConfig{
		Name:        eventsStream,
		Description: "Events of streamed answers, kept for replay.",
		Subjects:    []string{"evt.*.*"},
		Storage:     jetstream.MemoryStorage,
		Replicas:    l.Replicas,
		Discard:     jetstream.DiscardOld,
		MaxBytes:    l.EventsBytes,
		MaxAge:      l.EventsAge,
		AllowDirect: true,
		Duplicates:  min(2*time.Minute, l.EventsAge),
	}
}

func (l Limits) usage() jetstream.StreamConfig {
	return jetstream.StreamConfig{
		Name:        usageStream,
		Description: "Usage records on their way to the database.",
		Subjects:    []string{usageSubject},
		Retention:   jetstream.WorkQueuePolicy,
		Storage:     jetstream.FileStorage,
		Replicas:    l.Replicas,
		Discard:     jetstream.DiscardNew, // a full ledger stops the workers rather than forget what was used
		MaxBytes:    l.UsageBytes,
	}
}

func (l Limits) ledger() jetstream.ConsumerConfig {
	return jetstream.ConsumerConfig{
		Durable:       ledgerConsumer,
		AckPolicy:     jetstream.AckExplicitPolicy,
		AckWait:       30 * time.Second,
		MaxAckPending: 10_000,
	}
}

func (l Limits) dead() jetstream.StreamConfig {
	return jetstream.StreamConfig{
		Name:        deadStream,
		Description: "Jobs that no worker could understand or finish, with the reason.",
		Subjects:    []string{"dead.*"},
		Storage:     jetstream.FileStorage,
		Replicas:    l.Replicas,
		Discard:     jetstream.DiscardOld,
		MaxBytes:    256 << 20,
		MaxAge:      l.DeadLetterAge,
	}
}

func (l Limits) files() jetstream.ObjectStoreConfig {
	return jetstream.ObjectStoreConfig{
		Bucket:      filesBucket,
		Description: "Contents of files.",
		Storage:     jetstream.FileStorage,
		Replicas:    l.Replicas,
		MaxBytes:    l.FilesBytes,
	}
}
