"""The words that a twin of no particular model knows: common English ones, and a few that UTF-8 writes in several bytes.

The English ones are the 3,000 most frequent whole words of SmolLM2's vocabulary (Apache-2.0) that also occur in prose.
"""

from __future__ import annotations

_ENGLISH = """
a the in of and to is be for on that you as with an or it are he we by can at from was not this have int us your their cont
res they comp dis all imp will which do more me other has man about but app per out one if so were also part them up who into
pre these its some how self ind when his our may time under col there than diff go cons over acc know people like act des year
such rel been use help new what would need through am work any import def spec gen had off most no mod develop many rem add
used only first child system get inst between two ret inf learn where sub trans could num health should str her well val var
different every high world even form water sign just make exp years ref set disc data call my see then result those way each
because effect while process during found art count long pat dec after ext loc return dist prog read using pub cur lead rep
fact test life very being fun own she find understand right resp person back dep both follow important does grow min much main
conf che mon before information level study great end food start children good might within class often around made said show
pop same too power research design again small allow mem mat care less example down take day support human treat now
individual state called point number build play though prof body did must plan pos const est him common want met par ident
including three cell pass let typ elect social govern char method known real del conn without environment public still change
better hand another material report place learning interest present project sit list product feel cap light development sym
become open mean few keep others best include direct various name history create top perform home proper stand move among
something mark look things type large think desc function against law group oper means rest control dev here provide
particular anim several significant bus based pain area family potential due object enc old current try program early cal
together focus access last non turn struct orig risk fore success making print opt avail possible low say impact key certain
period run land case since specific local head post along value order occur come discuss government text following across why
addition cost times areas understanding cause able toward problem systems view major course model else prevent arg press hard
line tool relations special available consider community future natural complex experience language role until second country
young works always suggest exist levels problems put step today technology given strong little character results range
treatment age ways obs business book next far percent flow four represent similar short working essential past space sing
amount free concept later author conditions says needs words net give init paper kind mind improve resources having field
begin parent expect cells question pred knowledge changes appear issues story upon concern require relationship difficult
whether log types ask enough likely record usually days address makes away sum questions further protect ever going dig
individuals left path account i higher growth big collect full countries super increase connect sure stat science never exc
physical side however death term unique especially groups above event activities least maintain throughout contain subject
sound near personal modern affect population neg really rather became effects reason quality nature practice loss associated
pattern building cases detail size hold someone lower general factors million comes meet already global doc word simple regard
single abs members themselves materials source towards production respect either once seen thought deep job according pay done
interact team file ver cut required helps created activity analysis fail products aspect engine online live fall methods lot
management tot needed action idea sent quick reduce target necessary break society soft surface popular color ensure red
writing rights sun actually parts mess seem values lives port sometimes yet entire arr share increased rate came approach
response friends communities effective provides dest stress clear below image whole national developed meaning pressure arch
services events context ability taken increasing continue music avoid related instead states taking considered tell micro
culture allows ann review article cannot challenges site five training white reading techniques check position tools behavior
traditional except harm doing assess everyone clean itself computer began published sense react week love critical remain
weight condition measure benefits offer content true accept matter black draw bring rev took cultural cat feed instance
regular parents green terms conduct implement express identify previous attention structure etc dat produce region multiple
select months provided face forms practices total unit designed company elements positive creating consist hours reflect
almost shows half yourself aim bar service particularly fat recent claim contact involved programs thing sources simply commit
link original close sleep deb easy extra ideas max spread travel built aware started led issue historical longer performance
greater stop written outside models wild lands believe points decl correct slow fire behind progress threat assert leading
media books communication code ones user remember standard uses custom adapt takes developing safety stay caused normal daily
write numbers getting growing inside humans six includes importance causes policy basic answer safe complete primary features
prep input late looking page talk efforts exact achieve guid thinking shape overall div visit average cross compared damage
shown decision strategies beyond requires force patterns processes kids network poll series warm lack scientific quite
probably theory attempt quickly international cover request everything pack output inform colon eat document predict visual
prec tri easily ago base animal host families additional valuable variety generally search digital poor gain tree difference
software serious influence ancient crucial lines becomes active reported situation larger fit added bit companies section
included established table applications providing aspects tend images remains powerful prior application produced speak hands
friend security steps bad thus mention transport soon directly quant spirit video determine establish appropriate ast
responsible projects offers got named waste rules places hot devices refer agree exercise expected trying install objects
final cred held nav mix asked attack exploring options trees seems card und successful legal sea rich typically front limited
components involves purpose whose highly favor sold third useful central raise perfect reach therefore device obtain examples
learned minutes goal dry costs memory property fair load went transform demand length severe negative choose month chapter
anything respond fast protection speed although param explain status via solution mount significantly symbol capital supply
contribute differences regarding version command room lost contains wide shared dark bound block beginning principles workers
brought http structures users balance carry stage dim trust tests actions private exec sec forces received discovered news
graph limit continued saw interesting earlier date der functions discover location fear forward fields laws reasons leaves
center message organizations items benefit teach testing recommend trade measures weeks machine depend root resource construct
efficient smaller prop ten challenge apply told copy egg shall opportunity initial deal receive piece authors located serve
assign degree website hundred numerous hope util existing display names constant details repl moment properties concepts
collection task len solutions rare concerns feature effort exactly characters alg described expand web nothing sites decisions
exposure connection middle gives dead save affected construction organization identity allowing allowed nearly mid followed
recently leave goes rule platform older planning guide goals reduced miss fresh connections technologies scale background
standards sugar heard box surrounding valid largest style relevant core perhaps alone den summer effectively member basis
config gender applied completely equal decided element worth distance setting policies promote default wrong involve layer
academic distinct detect fully cand email fix running note figure currently math signs watch instruct bodies enter moving map
risks giving wanted worked occurs wrote joint master coming alternative specifically reality picture passed factor choice
capacity adjust finding contract index imagine distribution rand faith topic assist weak died changed famous store federal
operations refers actual commonly happens easier regions requirements placed becoming deeper strength former helping
experiment presence sample happen price track anyone thousands excess identified formed starting winter changing vary showed
reducing sharing remove expression defined foreign counter gets topics solid label random direction advanced eventually tasks
letter connected tox situations plans advance board filled mentioned readers ready resulting pen consumption despite causing
sort pieces separate lib blue chance dial eight technique interpret believed approaches pick increases gave row expert
depending manage error encourage belong presented outcomes billion native observed contrast frequently appears relatively
income classes walk column wonder majority conv suggests truth buy discussion helped languages files onto records heavy
reference sounds creation processing office transfer internal height option format improved reports prefer turned immediately
notes ensuring engineering represents race conflict institutions colors generation enhance participants elif release
commercial maintaining approximately win introduced party leads consequences vast meeting storage clearly freedom court huge
focused units multi practical independent strategy seek statement replace keeping creative cycle minor treated settings
extremely continues interested correspond primarily bottom star hear flex notice widely efficiency carried prepared spot grant
bud secret highest combination drive string extract favorite moved perspective performed familiar recommended operation spent
fundamental gather seven worldwide library meant signal responsibility choices saying environments fine volume adding consult
covered failure kid properly poly external remind significance served happened arm articles item title advice cast examine
seed generate carefully papers samples upper origin highlight smart mere letters round closely component screen array
containing finally roll figures send previously potentially impl ecosystem amounts networks looks released err referred
describe injury flood purposes owners https destroy confirm aid linked jobs seeking pages accurate advantage ourselves leaving
radio straight dangerous removed capable estimated ongoing credit promoting comment roots explained tail maybe mostly enable
pollution sets relative otherwise apart subjects push recognize square guidelines phase eggs determined secure argument
combined nor definition technical args monitoring appreciate supported facts taught frequency dict worry involving periods
official looked faster noted whom offered knew spend talking authority hour ultimately helpful slightly answers please charge
align showing completed killed hit ideal tiny existence reached stream description excellent truly improving salt reduction
smooth maximum proposed die traffic knows yield exposed obvious brief kept glob layers kinds solve amazing deliver exchange
raised parties intended operating sufficient offering certainly drawing firm indicate computers extreme selected raw views
affects depends follows double flat closer ship regularly funding happy creates internet edge frag returned spaces texts
handle thin tips discovery suggested asking cert kill mainly hidden informed begins dedicated medium procedure rapidly abuse
careful tried forced documents bright supporting circumstances client occurred behaviors procedures prepare window leader
foundation consistent manner suitable selection lies mode yellow infrastructure pretty era underlying skill decide join match
interactions formal drop instrument collected guidance instruction harmful persist appearance recorded virtual click variable
extent database remark links facilities moral wait discussed feedback depth sensitive strengthen serves detailed blog entirely
communicate filter minimum listen fill define sides introduction recovery lots chain examining messages touch starts claims
speaking controlled comprehensive typical attacks responses regulations largely stages audience addressing matters paid lose
sell recognized consists chosen exists mechanisms sequence band ahead restrict accepted intervention wants node assistance
latest prompt interaction opening opinion successfully studied variables knowing stem script hundreds catch server divided
adopt couple transition relax entry discussions protected measured session apparent download accounts naturally calls acts
principle positions parameters machines alt implications stock representation brand walking exploration reject shapes
maintenance generated boundaries visible understood stronger shift wire concerned broader frame tells confidence portion inner
framework boost producing remaining mobile implementation gained substance obtained managed managing signals cloud greatest
desired appeared programming narrow switch noise seeing sed architecture expensive improvement conventional explains
demonstrate floor reader designs decrease recognition fold stored impossible electronic marked pure tested sentence locations
gun failed persons slowly prev considering unless closed facing exercises capture instructions participate indeed enables
revealed platforms agreement artificial stick mac crop remote derived secondary stands competition fixed agreed pair monitor
float composition consumers mixed extended chart possibly usage arrange turns ensures pip inspired sole repeated evaluation
analyze shell protocol beneficial writer pull examination intellectual literary agencies stated achieved unknown organized
expectations resolution accuracy thread employed supports whereas opened errors meaningful score adopted limits categories
deeply bio powers describes functional arguments represented evaluate demonstrated forget comments brings distributed dynamic
fell administration door holds listed suffer rely extensive worse collective behaviour pump fewer leaf transmission blocks
zero presentation ratio possibility technological alongside immediate matrix normally survive twice comfortable returns desire
numpy indicates navigate missing applying authorities latter broken wish expressed insight compare advantages willing guess
publication prove styles inject necessarily publish strict painting update optimal commitment listening continuous supplies
agency shut vulnerable category compr succeed participation greatly domain accum originally thereby fly sections circuit
dealing verb turning difficulty ends thanks mechanism holding accessible consideration whatever teams magnetic complicated
serving reliable waiting stability cards opposite bear drain accident routine trip doubt maps delivery tap unexpected sought
flag affecting editor logging consumer preparation noticed module attached false reduces concerning split initially encounter
stable heavily alter comparison border produces summary purchase mathematical drawn regardless forth complexity unable dance
none putting permanent contributions launch rid adequate perm preventing convey proceed json expansion delay surfaces criteria
happening replaced operate joined trouble subsequent committed limitations initiatives angle concrete insert substantial subs
gone channel protecting conflicts colour facilitate percentage runs fashion labels zone introduce aims detection seconds
preserve symbols resulted intent gap installed theme proof jump sheet stuff alike bridge disrupt identifying adj route
prominent receiving shot graduate enabling warn relation contained excessive corner constantly barriers nine integrated merely
providers moves equivalent estimate feeding presents interpretation printing implemented statistics musical calculate agents
honor differently correctly artistic possibilities abstract robust treating supposed thousand whenever plenty ended division
measurements equally measurement unusual instances difficulties targets capabilities sys requiring branch bringing pool owner
outcome parallel mechanical assume controls destroyed discussing integration specified paint diagnosed ran www passing
algorithms minimize performing clients repair fairly meth notable contributing batch explanation explicit finished frequent
covers convert handling danger parser dataset algorithm strongly ships structural exception simultaneously tag scan universal
forming scores specialized neither newly embed sizes spin cleaning realm association stores damaged respectively encouraged
representing sessions circle contributed adds icon observe computing statements launched reaching bigger button equality
attempts transformation isinstance somewhat container branches regulation friendly watching formula empty incorporate issued
linear carrying moments digest stroke agent entered rect assigned essentially variations constructed permission captured marks
corresponding schedule blow destruction caught updated judge mask plus peak printed width escape actively strategic versions
cyber surprising modified efficiently arise inspect implementing promise await dates emphasis tables approved preferences
composed classic planned sad automatically announced mixture url assets ordinary expressions improvements keeps precise
dimensions render indicated analyzing proven considerable falls ring attach signed guard channels profile availability panel
laid traits pin declared measuring uniform finds origins extend targeted dependent plane sensitivity preparing preserving
identification scenario exhibit defend interface usual election provider safely privacy removal quiet contribution scope peer
choosing connecting outer experimental facility audio windows driven warning decreased lie maintained coverage minute opinions
vector absolute alive driver interactive calculated strange anywhere defect translation processed templ paragraph van recover
reporting holes query rarely losses migration tick principal eliminate reverse covering scenarios reasonable bias profit
sentences roughly taxes absence seemingly package compound claimed fault hardware flavor trace accurately consume collections
functioning mutual coding radical balanced variation tip minimal fourth logic flows confirmed lists harder lock requests wheel
investigate breaking flexibility nodes references info examined vertical flexible duration opposed rational parameter phrase
contributes granted libraries surprise acquired manifest calling probability curve detected delivered grows loop exceed saved
extension motivation appeal visited ease isolated determining copyright password expanded cas determination alternatives
enhanced temporary contexts versus manager raising losing blank ordered elsewhere keys gathered submit hence addressed
controlling exhaust telling columns acute edges directions saving acting bomb manual viewed union stopped occurring chose fed
integrity candidate combine preferred legacy cluster magic falling removing tight attributes highlights quantity definitely
illegal paying duty suit directed elected pointed separated magical plain auto differ writes trigger mistakes breaks ownership
span orders dictionary solely courts segment logger paths inclusive alert perfectly pairs dramatic clock finish recognizing
nice entering mock worst slave candidates establishing priority expanding notion hurt contents charged combining adapted
avoiding identities export intention oldest transmit params drivers wise lecture wider accomplish initiative regarded owned
engines grab reflects restrictions selling continuing consistently illustrate mouse crypt shares consumed judgment believes
unlikely tracking apps acceptance adaptation conversion transformed directory prime assignment existed cond confusion
everywhere lifetime inputs enum entities consent statistical payment threshold promotes codes applicable sending logical
assembly token compliance demonstrates precision accompanied addresses comprehension converted unlike cycles legend register
collecting restore configuration settled requirement pressing opposition inequality explaining isolation reaches sophisticated
relate bless killing displayed reputation license withdraw classification utilize considerations worker yes reflected
complement forever classified deploy assumed zones accordingly interior posts fitness currency suggestions assumptions applies
governing ancestors texture orientation accounting likelihood borrow shorter ignore lowest partial overview enforcement fires
seriously aggressive repeat subtle bare utility thank indirect basically scheme developers surrounded sequences recording
copies datetime selecting integral stack precisely null borders designated bin replacement draft kingdom rows managers
definitions acceptable identical somewhere importantly reasoning tends separation describing gaps safer associate tab boxes
gate caps collaborative nest gathering sale ranges varies constraints distinguish independently tale layout suspect busy
streams fraction commands dies funded reserved barrier permit template compat execution conclusions factory transmitted
proposal inclusion partnership temp occasionally representative divide encountered comparing filters rooms containers dropped
governance weights adoption pushing registered belonging entity acknowledge sees destination harness diagnostic mapping
optical accord passes msg serial sampling placing indicating freely severity provision offset persistent routes transactions
centered submitted bool eager generating pod integrating absolutely occupied grammar respective opens colorful resolve cited
menu disk purchased expenses searching develops photography displays territories dimension apparently boundary volunteers
literally welcome linguistic magnitude installation horizontal plug tort deals embedded synthetic documented preserved
incorporated retain prevents broke sel highlighting engineer puts guarantee consuming rotation ending rough documentation
recipes altered susceptible attribute dramatically attributed speeds acquire transferred totally symptom throw
"""
ENGLISH = tuple(_ENGLISH.split())
WIDE = ("café", "naïve", "señor", "größe", "œuvre", "привет", "слово", "東京", "言葉", "한글", "שלום", "مرحبا", "नमन", "🚀", "🐢")
"""Two to four bytes a character: what a stream cut at any byte has to survive."""
