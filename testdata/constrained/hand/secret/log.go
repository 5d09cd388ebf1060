//go:build !bare && !nolog

package secret

import "log/slog"

var Logger *slog.Logger

// Log logs, if there is a logger.
func Log(l *slog.Logger, text string) {
	if l != nil {
		l.Info(text)
	}
}
