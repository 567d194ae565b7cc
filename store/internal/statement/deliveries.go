package statement

import (
	"sluice/internal/webhook"
	"sluice/store"
)

// SecretTables are the tables with secrets that end.
var SecretTables = []string{"webhooks", "webhook_secrets"}

// Secrets returns what signs a delivery, the newest first.
func Secrets(secret, before string) []webhook.Secret {
	var secrets []webhook.Secret
	for _, s := range []string{secret, before} {
		if s != "" {
			secrets = append(secrets, webhook.Secret(s))
		}
	}
	return secrets
}

// LoggedAttempt is an attempt with the delivery that it was made for.
type LoggedAttempt struct {
	EventID, WebhookID string
	store.AttemptReport
}

// WithAttempts puts each attempt to its delivery. One that was made after the deliveries
// were read may belong to none of them.
func WithAttempts(reports []store.DeliveryReport, log []LoggedAttempt) []store.DeliveryReport {
	type place struct{ event, webhook string }
	at := make(map[place]int, len(reports))
	for i, r := range reports {
		at[place{r.EventID, r.WebhookID}] = i
	}
	for _, a := range log {
		if i, ok := at[place{a.EventID, a.WebhookID}]; ok {
			reports[i].Log = append(reports[i].Log, a.AttemptReport)
		}
	}
	return reports
}
