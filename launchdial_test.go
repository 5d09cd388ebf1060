package plugwire

import (
	"slices"
	"testing"
)

func TestFurtherAddressesOfALaunchLine(t *testing.T) {
	l := new(launchLine)
	all := []launchAddr{{"unix", "/tmp/a|b"}, {"tcp", "127.0.0.1:1"}, {"my-tcp", "[::1]:2"}}
	for _, a := range all {
		l.addAddr(a)
	}
	back, err := parseLaunchLine(l.String())
	if err != nil || !slices.Equal(back.addrs(), all) {
		t.Fatalf("%q gives %v, %v", l, back, err)
	}
	if old, want := l.String(), "1|0|unix|/tmp/a%7Cb|plugwire||alt=tcp:127.0.0.1:1|alt=my-tcp:[::1]:2"; old != want {
		t.Errorf("%s, want %s", old, want)
	}
	back, err = parseLaunchLine("1|0|unix|/a|plugwire||alt=|alt=tcp|alt=:x|alt=warp:9")
	if want := []launchAddr{{"unix", "/a"}, {"", "x"}, {"warp", "9"}}; err != nil || !slices.Equal(back.addrs(), want) {
		t.Fatalf("%v, %v", back.addrs(), err)
	}
	order := &launchOrder{transports: []string{"unix", "tcp"}, tls: []string{"tcp"}}
	for cert, may := range map[string]bool{"": false, "no pin": false, noPin: true} {
		if order.mayDial(launchAddr{"tcp", "x"}, &launchLine{cert: cert}) != may {
			t.Errorf("pin %q: %v", cert, !may)
		}
	}
	for _, network := range []string{"", "warp"} {
		if order.mayDial(launchAddr{network, "x"}, l) {
			t.Errorf("the host has not allowed %q", network)
		}
	}
}
