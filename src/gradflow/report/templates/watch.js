// A page that follows runs is read anew, but not while somebody types. By script, since the address keeps what is chosen
// behind a #, and http-equiv=refresh then goes to that place in the same page.
const refresh = document.querySelector("meta[name=refresh]");
if (refresh) setInterval(() => { if (!document.activeElement.matches("input, select")) location.reload(); }, 1000 * refresh.content);
